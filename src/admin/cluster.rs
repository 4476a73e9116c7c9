//! Commands about the cluster: who leads, how far everybody is, and moving work between nodes.

use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use spillway_net::client::{Client, ClientError, Follow};
use spillway_net::message::{ClusterAction, ClusterCommand, ClusterReport, MemberReport};
use spillway_runtime::clock::monotonic_now;
use spillway_runtime::thread;

use super::{
    AdminArguments, AdminError, Cell, TextTable, check_address, connect, json_string, printable,
};

const NANOS_PER_MS: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Wait between two looks at the cluster.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long one look may take, seconds.
const LOOK_SECONDS: u64 = 1;

/// How a node sees the cluster, as text.
pub(super) fn view(report: &ClusterReport, cluster: u128) -> String {
    let leader = match report.leader {
        0 => "no leader known".to_owned(),
        leader => format!("leader {leader}"),
    };
    let (node, role, term) = (report.node, printable(&report.role), report.term);
    let mut text =
        format!("node {node} of cluster {cluster:032x}: {role}, term {term}, {leader}\n");
    let mut table = TextTable::default();
    let mut line = |name: &str, value: String, meaning: &str| {
        table.row(vec![
            Cell::text(name.to_owned()),
            Cell::number(value),
            Cell::text(meaning.to_owned()),
        ]);
    };
    line("SCL", report.scl.to_string(), "durable on this node, without gaps");
    line("VCL", report.vcl.to_string(), "durable on a majority");
    line("VDL", report.vdl.to_string(), "committed: answers leave up to here");
    line("applied", report.applied.to_string(), "executed or applied on this node");
    line("PGMRPL", report.pgmrpl.to_string(), "the oldest that anybody may still read");
    let (lal, tail) = (report.lal_bytes, report.tail_bytes);
    line("LAL", lal.to_string(), &format!("bytes that may be ahead of the VDL; {tail} are"));
    text.push_str(&table.print());
    text.push('\n');
    text
}

/// Lists the nodes.
pub(super) fn zones(
    arguments: &AdminArguments,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    // A cluster without a leader is what an operator most wants to see.
    let mut client = match connect(arguments, Follow::Leader) {
        Err(AdminError::Client(ClientError::NoLeader { .. } | ClientError::Connect { .. })) => {
            connect(arguments, Follow::Any)?
        }
        client => client?,
    };
    let report = client.cluster_status()?;
    let text = if json { zones_json(&report) } else { zones_text(&report) };
    out.write_all(text.as_bytes())?;
    Ok(())
}

fn role_of(report: &ClusterReport, member: &MemberReport) -> &'static str {
    match member.kind.as_str() {
        _ if member.node == report.leader => "leader",
        "learner" | "joining" => "learner",
        _ => "follower",
    }
}

/// By how many batches a member's log is behind; `None` if that is not known.
fn lag_of(report: &ClusterReport, member: &MemberReport) -> Option<u64> {
    (member.matched > 0).then(|| report.vdl.saturating_sub(member.matched))
}

fn zones_text(report: &ClusterReport) -> String {
    let (node, term, leader) = (report.node, report.term, report.leader);
    let mut text = match leader {
        0 => format!("no node leads: as node {node} sees it, term {term}\n"),
        _ => format!("leader {leader}, term {term}, VDL {}, as node {node} sees it\n", report.vdl),
    };
    let mut table = TextTable::default();
    table.row(vec![
        Cell::number("node".to_owned()),
        Cell::text("address".to_owned()),
        Cell::text("kind".to_owned()),
        Cell::text("state".to_owned()),
        Cell::text("role".to_owned()),
        Cell::number("lag".to_owned()),
        Cell::number("applied".to_owned()),
        Cell::number("silent_ms".to_owned()),
        Cell::text("drained".to_owned()),
    ]);
    let known = |number: u64| if number == 0 { "-".to_owned() } else { number.to_string() };
    for member in &report.members {
        let lag = lag_of(report, member).map_or("-".to_owned(), |lag| lag.to_string());
        table.row(vec![
            Cell::number(member.node.to_string()),
            Cell::text(printable(&member.address)),
            Cell::text(printable(&member.kind)),
            Cell::text(printable(&member.state)),
            Cell::text(role_of(report, member).to_owned()),
            Cell::number(lag),
            Cell::number(known(member.applied)),
            Cell::number(member.silent_ms.to_string()),
            Cell::text(if member.drained { "yes" } else { "no" }.to_owned()),
        ]);
    }
    text.push_str(&table.print());
    text
}

fn zones_json(report: &ClusterReport) -> String {
    let mut text = "{\n".to_owned();
    let role = json_string(&report.role);
    writeln!(text, "  \"node\": {}, \"role\": {role},", report.node).expect("a string");
    writeln!(text, "  \"term\": {}, \"leader\": {},", report.term, report.leader)
        .expect("a string");
    for (name, value) in [
        ("scl", report.scl),
        ("vcl", report.vcl),
        ("vdl", report.vdl),
        ("pgmrpl", report.pgmrpl),
        ("applied", report.applied),
        ("lal_bytes", report.lal_bytes),
        ("tail_bytes", report.tail_bytes),
    ] {
        writeln!(text, "  \"{name}\": {value},").expect("a string");
    }
    let member = |member: &MemberReport| {
        let lag = lag_of(report, member).map_or("null".to_owned(), |lag| lag.to_string());
        format!(
            "    {{\"node\": {}, \"address\": {}, \"peer_address\": {}, \"kind\": {}, \
             \"state\": {}, \"role\": \"{}\", \"lag\": {lag}, \"matched\": {}, \"applied\": {}, \
             \"silent_ms\": {}, \"drained\": {}}}",
            member.node,
            json_string(&member.address),
            json_string(&member.peer_address),
            json_string(&member.kind),
            json_string(&member.state),
            role_of(report, member),
            member.matched,
            member.applied,
            member.silent_ms,
            member.drained,
        )
    };
    let members: Vec<_> = report.members.iter().map(member).collect();
    text.push_str(&format!("  \"members\": [\n{}\n  ]\n}}\n", members.join(",\n")));
    text
}

/// Keeps leadership and reads away from a node, or ends that.
pub(super) fn drain(
    arguments: &AdminArguments,
    node: u16,
    drained: bool,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let mut client = connect(arguments, Follow::Leader)?;
    check_member(&client.cluster_status()?, node)?;
    let action = if drained { ClusterAction::Drain } else { ClusterAction::Undrain };
    command(&mut client, action, node)?;
    let is_done = |report: &ClusterReport| {
        let member = report.members.iter().find(|member| member.node == node);
        let is_drained = member.is_some_and(|member| member.drained);
        is_drained == drained && !(drained && report.leader == node)
    };
    let what = match drained {
        true => format!("node {node} was not drained"),
        false => format!("the drain of node {node} did not end"),
    };
    let leader = look_until(arguments, what, is_done)?.leader;
    match drained {
        true => writeln!(
            out,
            "node {node} is drained: it votes, and neither leads nor serves reads; node {leader} \
             leads (spillway admin undrain {node} ends that)"
        )?,
        false => writeln!(out, "node {node} may lead and serve reads again")?,
    }
    Ok(())
}

/// Hands leadership over and waits until another node leads.
pub(super) fn transfer(
    arguments: &AdminArguments,
    to: Option<u16>,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let mut client = connect(arguments, Follow::Leader)?;
    let before = client.cluster_status()?;
    let old = before.leader;
    if let Some(to) = to {
        check_member(&before, to)?;
        if to == old {
            writeln!(out, "node {to} leads already, term {}", before.term)?;
            return Ok(());
        }
    }
    let began = monotonic_now();
    command(&mut client, ClusterAction::Transfer, to.unwrap_or(0))?;
    let is_done = |report: &ClusterReport| report.leader != 0 && report.leader != old;
    let what = format!("leadership did not move away from node {old}");
    let after = look_until(arguments, what, is_done)?;
    let took = monotonic_now().saturating_nanos_since(began) / NANOS_PER_MS;
    if let Some(wanted) = to.filter(|to| *to != after.leader) {
        return Err(AdminError::OtherLeader { wanted, leader: after.leader });
    }
    let (new, term) = (after.leader, after.term);
    writeln!(out, "leadership moved from node {old} to node {new} in {took} ms, term {term}")?;
    Ok(())
}

/// Who takes whose place.
pub(super) struct Replacement<'a> {
    pub(super) old: u16,
    pub(super) new: u16,
    pub(super) peer_address: &'a str,
    pub(super) address: &'a str,
}

/// Lets a new node take the place of another one.
pub(super) fn replace_node(
    arguments: &AdminArguments,
    members: &Replacement<'_>,
    out: &mut dyn Write,
) -> Result<(), AdminError> {
    let (old, new) = (members.old, members.new);
    if old == new {
        return Err(AdminError::NodeSame(new));
    }
    check_address(members.peer_address)?;
    check_address(members.address)?;
    let mut client = connect(arguments, Follow::Leader)?;
    let report = client.cluster_status()?;
    check_member(&report, old)?;
    if report.members.iter().any(|member| member.node == new) {
        return Err(AdminError::NodeTaken(new));
    }
    client.cluster_command(&ClusterCommand {
        action: ClusterAction::Replace as u8,
        node: old,
        node_new: new,
        peer_address: members.peer_address.to_owned(),
        address: members.address.to_owned(),
    })?;
    writeln!(
        out,
        "node {new} joins in the place of node {old}: it votes when it has caught up (spillway \
         admin zones shows how far it is)"
    )?;
    Ok(())
}

fn check_member(report: &ClusterReport, node: u16) -> Result<(), AdminError> {
    let mut nodes = report.members.iter().map(|member| member.node);
    if nodes.clone().any(|member| member == node) {
        return Ok(());
    }
    let first = nodes.next().map_or("none".to_owned(), |first| first.to_string());
    let known = nodes.fold(first, |text, node| format!("{text}, {node}"));
    Err(AdminError::NodeUnknown { node, known })
}

/// Gives a command that may cost the leader its connections before it has answered: what became
/// of it is seen in the cluster.
fn command(client: &mut Client, action: ClusterAction, node: u16) -> Result<(), AdminError> {
    let command = ClusterCommand {
        action: action as u8,
        node,
        node_new: 0,
        peer_address: String::new(),
        address: String::new(),
    };
    match client.cluster_command(&command) {
        Ok(()) | Err(ClientError::Unknown(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Looks at the cluster until it is as wanted. `what` says what did not happen if it never is.
fn look_until(
    arguments: &AdminArguments,
    what: String,
    is_done: impl Fn(&ClusterReport) -> bool,
) -> Result<ClusterReport, AdminError> {
    let began = monotonic_now();
    let brief = AdminArguments {
        nodes: arguments.nodes.clone(),
        timeout: LOOK_SECONDS.min(arguments.timeout),
        command: super::AdminCommand::Tables,
    };
    let mut client: Option<Client> = None;
    loop {
        let look = match client.as_mut() {
            Some(client) => client.cluster_status().map_err(AdminError::from),
            None => match connect(&brief, Follow::Leader) {
                Ok(connected) => client.insert(connected).cluster_status().map_err(Into::into),
                Err(error) => Err(error),
            },
        };
        let seen = match look {
            Ok(report) if is_done(&report) => return Ok(report),
            Ok(ClusterReport { leader, term, .. }) => format!(
                "node {leader} leads in term {term}: see whether the others are reachable and \
                 close enough (spillway admin zones)"
            ),
            Err(error) => {
                client = None;
                error.to_string()
            }
        };
        let seconds = arguments.timeout;
        if monotonic_now().saturating_nanos_since(began) >= seconds * NANOS_PER_SECOND {
            return Err(AdminError::NotDone { what, seconds, seen });
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
#[path = "../../net/tests/client/node.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the tests of the client")]
mod node;

#[cfg(test)]
mod tests {
    use super::node::{Faults, Node};
    use super::*;
    use crate::admin::{AdminCommand, run};

    /// Runs a command at one node of a cluster.
    fn admin_at(node: &Node, timeout: u64, command: AdminCommand) -> Result<String, AdminError> {
        let arguments =
            AdminArguments { nodes: vec![node.address().to_string()], timeout, command };
        let mut out = Vec::new();
        run(&arguments, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    fn admin(node: &Node, command: AdminCommand) -> Result<String, AdminError> {
        admin_at(node, 10, command)
    }

    fn cluster() -> Vec<Node> {
        Node::cluster(3, 2, Faults::default())
    }

    fn lines(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn status_is_that_of_the_node_asked() {
        let nodes = cluster();
        let status = |node| admin(node, AdminCommand::Status { json: false }).expect("answered");
        let text = status(&nodes[1]);
        assert!(text.starts_with("node 2 of cluster 0"), "{text}");
        assert!(text.contains(": follower, term 1, leader 1\n"), "{text}");
        for name in ["SCL", "VCL", "VDL", "PGMRPL", "LAL", "applied", "frames"] {
            assert!(lines(&text).iter().any(|line| line.first() == Some(&name)), "{name}: {text}");
        }
        nodes[0].state().elect(0);
        let text = status(&nodes[0]);
        assert!(text.contains("no leader known"), "{text}");
    }

    #[test]
    fn zones_are_listed_as_the_leader_sees_them() {
        let nodes = cluster();
        nodes[0].state().elect(3);
        nodes[0].state().drained = vec![1];
        let zones = |json| admin(&nodes[1], AdminCommand::Zones { json }).expect("answered");
        let text = zones(false);
        let found = lines(&text);
        assert!(text.starts_with("leader 3, term 2, VDL 100, as node 3 sees it\n"), "{text}");
        let address = nodes[1].address().to_string();
        assert_eq!(
            found[3],
            ["2", &address, "voter", "follower", "follower", "2", "88", "1", "no"]
        );
        assert_eq!((found[2][8], found[4][4]), ("yes", "leader"));
        let json = zones(true);
        assert!(json.contains("\"leader\": 3"), "{json}");
        assert!(json.contains("\"lag\": 2, \"matched\": 98, \"applied\": 88"), "{json}");
    }

    #[test]
    fn zones_are_listed_without_a_leader_too() {
        let nodes = cluster();
        nodes[0].state().elect(0);
        let text = admin(&nodes[1], AdminCommand::Zones { json: false }).expect("answered");
        assert!(text.starts_with("no node leads: as node 2 sees it, term 2\n"), "{text}");
        assert_eq!(lines(&text).len(), 5);
    }

    #[test]
    fn leadership_is_handed_over_and_waited_for() {
        let nodes = cluster();
        let transfer = |to| admin(&nodes[2], AdminCommand::Transfer { to });
        let text = transfer(None).expect("moved");
        assert!(text.starts_with("leadership moved from node 1 to node 2 in "), "{text}");
        let text = transfer(Some(3)).expect("moved");
        assert!(text.starts_with("leadership moved from node 2 to node 3 in "), "{text}");
        assert!(text.ends_with(" ms, term 3\n"), "{text}");
        assert_eq!(transfer(Some(3)).expect("nothing to do"), "node 3 leads already, term 3\n");
        let error = transfer(Some(9)).expect_err("no such node").to_string();
        assert!(error.contains("no node 9: the cluster has 1, 2, 3"), "{error}");
        nodes[0].state().faults.keeps_leading = true;
        let stays = admin_at(&nodes[0], 1, AdminCommand::Transfer { to: None });
        let error = stays.expect_err("it stays");
        assert!(matches!(error, AdminError::NotDone { seconds: 1, .. }) && !error.is_usage());
        let text = error.to_string();
        assert!(text.contains("did not move away from node 3 within 1 s"), "{text}");
        assert!(text.contains("admin zones"), "{text}");
    }

    #[test]
    fn nodes_are_drained_and_undrained() {
        let nodes = cluster();
        let text = admin(&nodes[1], AdminCommand::Drain { zone: 2 }).expect("drained");
        assert!(text.starts_with("node 2 is drained") && text.contains("undrain 2"), "{text}");
        assert_eq!(nodes[0].state().drained, [2]);
        let text = admin(&nodes[1], AdminCommand::Undrain { zone: 2 }).expect("undrained");
        assert!(text.starts_with("node 2 may lead"), "{text}");
        assert!(nodes[0].state().drained.is_empty());
        let error = admin(&nodes[0], AdminCommand::Drain { zone: 7 }).expect_err("no such node");
        assert!(matches!(error, AdminError::NodeUnknown { node: 7, .. }));
    }

    #[test]
    fn a_node_is_replaced_by_a_new_one() {
        let nodes = cluster();
        let replace = |old, new, address: &str| {
            let (peer_address, address) = ("h:1".to_owned(), address.to_owned());
            admin(&nodes[2], AdminCommand::ReplaceNode { old, new, peer_address, address })
        };
        let text = replace(2, 4, "h:2").expect("accepted");
        assert!(text.starts_with("node 4 joins in the place of node 2"), "{text}");
        let command = nodes[0].state().command.clone().expect("it came");
        assert_eq!((command.node, command.node_new), (2, 4));
        assert_eq!((command.peer_address.as_str(), command.address.as_str()), ("h:1", "h:2"));
        assert!(matches!(replace(2, 3, "h:2"), Err(AdminError::NodeTaken(3))));
        assert!(matches!(replace(5, 4, "h:2"), Err(AdminError::NodeUnknown { node: 5, .. })));
        assert!(replace(2, 2, "h:2").expect_err("the same").is_usage());
        assert!(replace(2, 4, "h").expect_err("no address").is_usage());
    }

    #[test]
    fn texts_of_nodes_cannot_steer_a_terminal() {
        let member = MemberReport {
            node: 1,
            kind: "\x1b[2J".to_owned(),
            state: "a\nb".to_owned(),
            ..MemberReport::default()
        };
        let role = "\x1b]0;x\x07".to_owned();
        let report = ClusterReport { role, members: vec![member], ..ClusterReport::default() };
        let texts = [view(&report, 1), zones_text(&report), zones_json(&report)];
        assert!(texts.iter().all(|text| !text.chars().any(|c| c.is_control() && c != '\n')));
        assert_eq!(zones_text(&report).lines().count(), 3);
    }
}
