//! The ring with loom's count of owners, which orders as the real one does.

pub mod queue {
    pub mod sync {
        pub use loom::sync::Arc;
    }
}

#[path = "../../src/slot_ring.rs"]
#[expect(dead_code, reason = "the model uses a part of the file")]
pub mod slot_ring;
