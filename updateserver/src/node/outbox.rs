//! What a shard hands over, on its way into the log's queue, and what must not overtake it.
//!
//! Nobody waits for room: items that find the queue full stay here, and the shard executes nothing
//! until they are in. An order of the root service counts as carried out only when all that was
//! handed over before is in the queue. The root service logs the end of a table or a session when
//! all shards have let go of it; told too early, it would put that end in front of their last
//! fragments, and a replay would meet records of a table that is gone.

use std::collections::VecDeque;

use spillway_runtime::queue::mpsc::{Full, Producer};

use crate::shard::{LogItem, ORIGIN_ROOT};

/// See the module.
pub(super) struct Outbox {
    queue: Producer<Box<LogItem>>,
    backlog: VecDeque<Box<LogItem>>,
    /// Ticket, origin and stamp of each item in the queue or the log that is not committed.
    handed_over: VecDeque<(u64, u16, u64)>,
    /// Orders carried out that the root service has not been told of.
    orders_done: u32,
}

impl Outbox {
    pub fn new(queue: Producer<Box<LogItem>>) -> Self {
        Self { queue, backlog: VecDeque::new(), handed_over: VecDeque::new(), orders_done: 0 }
    }

    /// Items to hand over, in order.
    pub fn push(&mut self, items: impl Iterator<Item = Box<LogItem>>) {
        self.backlog.extend(items);
    }

    /// Orders were carried out, behind all that was pushed.
    pub fn orders_done(&mut self, count: u32) {
        self.orders_done += count;
    }

    /// Whether everything pushed is in the log's queue.
    pub fn is_empty(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Whether everything pushed is committed.
    pub fn is_drained(&self) -> bool {
        self.backlog.is_empty() && self.handed_over.is_empty()
    }

    /// Items in the queue or the log that are not committed.
    pub fn waiting(&self) -> u64 {
        self.handed_over.len() as u64
    }

    /// Puts into the queue what it has room for. Returns whether that was anything.
    pub fn hand_over(&mut self) -> bool {
        let mut any = false;
        while let Some(item) = self.backlog.pop_front() {
            let (origin, stamp) = (item.origin, item.stamp);
            match self.queue.try_push(item) {
                Ok(ticket) => {
                    self.handed_over.push_back((ticket.0, origin, stamp));
                    any = true;
                }
                Err(Full(item)) => {
                    self.backlog.push_front(item);
                    break;
                }
            }
        }
        any
    }

    /// Gives `tell` the orders that the root service may be told of now; it says whether it could.
    pub fn orders_tell(&mut self, tell: impl FnOnce(u32) -> bool) {
        if self.backlog.is_empty() && self.orders_done > 0 && tell(self.orders_done) {
            self.orders_done = 0;
        }
    }

    /// Everything up to a ticket is committed. Gives the newest stamps of the shard and of the
    /// root service among it.
    pub fn committed_to(&mut self, committed: u64) -> (Option<u64>, Option<u64>) {
        let (mut shard, mut root) = (None, None);
        while let Some((ticket, origin, stamp)) = self.handed_over.front().copied() {
            if ticket > committed {
                break;
            }
            self.handed_over.pop_front();
            if origin == ORIGIN_ROOT { root = Some(stamp) } else { shard = Some(stamp) }
        }
        (shard, root)
    }

    /// Leadership has ended: what is not committed is taken back.
    pub fn clear(&mut self) {
        self.backlog.clear();
        self.handed_over.clear();
    }
}

#[cfg(test)]
mod tests {
    use spillway_runtime::queue::mpsc;

    use super::*;

    fn item(stamp: u64, origin: u16) -> Box<LogItem> {
        Box::new(LogItem { stamp, origin, ..LogItem::default() })
    }

    #[test]
    fn an_order_is_told_only_when_the_items_before_it_are_in_the_queue() {
        let (queue, mut log) = mpsc::ring(2);
        let mut outbox = Outbox::new(queue);
        outbox.push((1..=3).map(|stamp| item(stamp, 0)));
        outbox.orders_done(1);
        outbox.orders_tell(|_| panic!("nothing is in the queue"));
        assert!(outbox.hand_over());
        assert!(!outbox.is_empty(), "the queue holds two");
        outbox.orders_tell(|_| panic!("the item that the order handed over is not in the queue"));
        log.pop().expect("the first");
        assert!(outbox.hand_over() && outbox.is_empty());
        let mut told = Vec::new();
        outbox.orders_tell(|count| {
            told.push(count);
            false
        });
        outbox.orders_done(2);
        outbox.orders_tell(|count| {
            told.push(count);
            true
        });
        outbox.orders_tell(|_| panic!("all is told"));
        assert_eq!(told, [1, 3], "what could not be told is told later");
    }

    #[test]
    fn what_is_committed_is_told_by_origin() {
        let (queue, _log) = mpsc::ring(8);
        let mut outbox = Outbox::new(queue);
        outbox.push([item(1, 0), item(7, ORIGIN_ROOT), item(2, 0)].into_iter());
        assert!(outbox.hand_over() && !outbox.hand_over());
        let tickets: Vec<u64> = outbox.handed_over.iter().map(|(ticket, ..)| *ticket).collect();
        assert_eq!(outbox.committed_to(tickets[1]), (Some(1), Some(7)));
        assert_eq!((outbox.waiting(), outbox.is_drained()), (1, false));
        assert_eq!(outbox.committed_to(tickets[2]), (Some(2), None));
        assert!(outbox.is_drained());
    }
}
