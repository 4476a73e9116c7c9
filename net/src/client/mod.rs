//! The client: a batch builder, a core that decides, and two faces.
//!
//! ```text
//! Batch ---> ClientCore (session, numbers, resend) ---> Pipeline (many connections, one thread)
//!            pure                                  \---> Client   (blocking, for people)
//! ```
//!
//! Every connection has a session of its own and talks to one shard. A frame is kept until it is
//! answered; after a lost connection the session is attached again, to the leader of that time,
//! and unanswered frames are sent again with the same numbers, so each of their transactions takes
//! effect at most once. What could not be found out is told as an unknown outcome, and can be
//! asked for again.

pub mod answer;
pub mod backoff;
pub mod batch;
pub mod blocking;
pub mod core;
#[cfg(test)]
mod core_tests;
mod course;
pub mod error;
#[cfg(test)]
mod follow_tests;
pub mod freshness;
mod link;
pub mod nodes;
pub mod outcome;
pub mod pipelined;
mod plan;
pub mod scan;
pub mod table;
pub mod transaction;
mod window;

pub use answer::{FrameAnswer, FrameResult, FrameToken, LossReason};
pub use batch::{Batch, BatchError};
pub use blocking::{Client, ClientOptions, Row};
pub use core::Follow;
pub use error::ClientError;
pub use freshness::Freshness;
pub use nodes::NodeBook;
pub use outcome::{FoundRow, GetResults, Outcome};
pub use pipelined::{Pipeline, PipelineOptions, Spread, Wait};
pub use scan::{ScanRange, ScanRows};
pub use table::{Router, TableError, TableHandle};
pub use transaction::Transaction;
