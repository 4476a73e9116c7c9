//! What passes between cores.
//!
//! | module | passes |
//! |---|---|
//! | [`mpsc`] | items of many cores to one, in the order of one atomic tail |
//! | [`spsc`] | items of one core to one |
//! | [`park`] | the news that there is something to look at, once, and only to a sleeper |
//! | [`state`] | the newest state, overwritten and never queued |
//!
//! Nobody waits in any of them: a full ring is an answer. The algorithms take their atomics from
//! `super::sync`, so that `tests/queue_model.rs` can compile the same files against a model
//! checker's.

pub mod mpsc;
pub mod park;
pub mod spsc;
pub mod state;
pub(crate) mod sync;
