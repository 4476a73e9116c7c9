//! Orders to the file system, as values and as lines of text.
//!
//! A line is the number of a disk and one of:
//!
//! - `fault read|write|flush segments|superblock|all WHAT WHEN`, WHAT being `eio`, `enospc`,
//!   `torn=SECTORS`, `flip` or `lie`, and WHEN `nth=N`, `from=N` or `one-in=N`
//! - `slow MILLISECONDS`, `stall`, `stall-open`, `resume`, `heal`
//! - `cut`, `cut-at write|flush N`, `power-on none|all|some`
//! - `room BYTES|none`

use std::str::FromStr;
use std::time::Duration;

use crate::disk::{Effect, Fault, Operation, Part, When};
use crate::error::RigError;
use crate::sectors::Keep;

/// What a disk is told to do from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// To fail.
    Fault(Fault),
    /// To take so much longer for everything.
    Slow(Duration),
    /// To answer nothing until [`Order::Resume`].
    Stall,
    /// The same, but only to those who have files open now: others are served.
    StallOpen,
    /// See [`Order::Stall`].
    Resume,
    /// To do everything right, at full speed.
    Heal,
    /// To be without power. Whoever uses it must be killed now.
    Cut,
    /// To be without power from the middle of its n-th write, or flush, on.
    CutAt(Operation, u64),
    /// To have power again, and of what was not flushed only this.
    PowerOn(Keep),
    /// To let files grow by so much; none: without a limit of its own.
    Room(Option<u64>),
}

/// An order to one disk, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOrder {
    /// The disk.
    pub disk: usize,
    /// The order.
    pub order: Order,
}

impl FromStr for DiskOrder {
    type Err = RigError;

    fn from_str(text: &str) -> Result<Self, RigError> {
        let wrong = |why: &str| RigError::Order { order: text.to_owned(), why: why.to_owned() };
        let mut words = text.split_whitespace();
        let disk = words.next().and_then(|word| word.parse().ok());
        let disk = disk.filter(|disk| *disk > 0).ok_or_else(|| wrong("no number of a disk"))?;
        let verb = words.next().ok_or_else(|| wrong("nothing is ordered"))?;
        let rest: Vec<&str> = words.collect();
        let order = order(verb, &rest).ok_or_else(|| wrong("see the module `order`"))?;
        Ok(Self { disk, order })
    }
}

fn order(verb: &str, rest: &[&str]) -> Option<Order> {
    Some(match (verb, rest) {
        ("fault", [operation, part, effect, when]) => Order::Fault(Fault {
            operation: match *operation {
                "read" => Operation::Read,
                "write" => Operation::Write,
                "flush" => Operation::Flush,
                _ => return None,
            },
            part: match *part {
                "segments" => Some(Part::Segments),
                "superblock" => Some(Part::Superblock),
                "all" => None,
                _ => return None,
            },
            effect: effect_of(effect)?,
            when: when_of(when)?,
        }),
        ("slow", [millis]) => Order::Slow(Duration::from_millis(millis.parse().ok()?)),
        ("stall", []) => Order::Stall,
        ("stall-open", []) => Order::StallOpen,
        ("resume", []) => Order::Resume,
        ("heal", []) => Order::Heal,
        ("cut", []) => Order::Cut,
        ("cut-at", ["write", nth]) => Order::CutAt(Operation::Write, nth.parse().ok()?),
        ("cut-at", ["flush", nth]) => Order::CutAt(Operation::Flush, nth.parse().ok()?),
        ("power-on", ["none"]) => Order::PowerOn(Keep::None),
        ("power-on", ["all"]) => Order::PowerOn(Keep::All),
        ("power-on", ["some"]) => Order::PowerOn(Keep::Some(128)),
        ("room", ["none"]) => Order::Room(None),
        ("room", [bytes]) => Order::Room(Some(bytes.parse().ok()?)),
        _ => return None,
    })
}

fn effect_of(word: &str) -> Option<Effect> {
    match word {
        "eio" => Some(Effect::Error(libc::EIO)),
        "enospc" => Some(Effect::Error(libc::ENOSPC)),
        "flip" => Some(Effect::FlippedBit),
        "lie" => Some(Effect::Lie),
        _ => Some(Effect::Torn(word.strip_prefix("torn=")?.parse().ok()?)),
    }
}

fn when_of(word: &str) -> Option<When> {
    let (when, number) = word.split_once('=')?;
    let number = number.parse().ok().filter(|number| *number > 0)?;
    match when {
        "nth" => Some(When::Nth(number)),
        "from" => Some(When::From(number)),
        "one-in" => Some(When::OneIn(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_orders() {
        let parse = |text: &str| text.parse::<DiskOrder>().expect(text);
        let fault = Fault {
            operation: Operation::Write,
            part: Some(Part::Segments),
            effect: Effect::Torn(3),
            when: When::Nth(7),
        };
        let line = parse("2 fault write segments torn=3 nth=7");
        assert_eq!(line, DiskOrder { disk: 2, order: Order::Fault(fault) });
        assert_eq!(parse("1 cut-at flush 3").order, Order::CutAt(Operation::Flush, 3));
        assert_eq!(parse("1 slow 20").order, Order::Slow(Duration::from_millis(20)));
        assert_eq!(parse("1 power-on none").order, Order::PowerOn(Keep::None));
        assert_eq!(parse(" 1  room 4096 ").order, Order::Room(Some(4096)));
        for (text, order) in
            [("1 stall", Order::Stall), ("1 resume", Order::Resume), ("1 cut", Order::Cut)]
        {
            assert_eq!(parse(text).order, order);
        }
    }

    #[test]
    fn other_lines_are_none() {
        for text in [
            "",
            "0 cut",
            "x cut",
            "1",
            "1 explode",
            "1 cut now",
            "1 fault write segments torn=3",
            "1 fault write segments torn= nth=1",
            "1 fault write segments eio nth=0",
            "1 fault write logs eio nth=1",
            "1 slow soon",
        ] {
            text.parse::<DiskOrder>().expect_err(text);
        }
    }
}
