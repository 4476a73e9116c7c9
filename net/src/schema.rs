//! stub for compile
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq)]
pub struct TableDefinition {
    pub name: String,
}
