//! Tables as a shard sees them: definition, compiled layout, and where their rows are.

use spillway_net::ids::TableId;
use spillway_net::layout::TableLayout;
use spillway_net::schema::{SchemaError, TableDefinition};

/// A table on one shard.
#[derive(Debug)]
pub struct ShardTable {
    /// Its id.
    pub id: TableId,
    /// As the client gave it.
    pub definition: TableDefinition,
    /// Compiled for the hot path.
    pub layout: TableLayout,
    /// Its slice of local partition p is the shard's slice `slice_base + p`.
    pub slice_base: usize,
    /// Its drop is ordered and not committed: clients do not see it any more.
    pub hidden: bool,
}

impl ShardTable {
    /// A table whose slices begin at `slice_base`.
    pub fn new(
        id: TableId,
        definition: TableDefinition,
        slice_base: usize,
    ) -> Result<Self, SchemaError> {
        assert_ne!(id.0, 0, "0 is no table");
        let layout = TableLayout::new(&definition)?;
        Ok(Self { id, definition, layout, slice_base, hidden: false })
    }
}
