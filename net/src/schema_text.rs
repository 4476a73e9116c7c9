//! Table definitions as text, for the command line:
//!
//! ```text
//! accounts(branch int8, id int8, balance decimal(18,2), note text null,
//!          primary key (branch, id), partition key (branch))
//! ```
//!
//! Columns take no null unless they say `null`. Without `partition key` the whole primary key is
//! the partition key.

#![deny(clippy::indexing_slicing)]

use std::fmt;

use crate::limits::{COLUMNS_MAX, NAME_BYTES_MAX};
use crate::schema::{ColumnDefinition, ColumnType, SchemaError, TableDefinition, name_quoted};

const TYPES: &str = "bool, int2, int4, int8, float8, decimal(PRECISION,SCALE), text, bytea, date, \
                     timestamptz or uuid";

/// The longest text that is read: every column at its longest.
const TEXT_BYTES_MAX: usize = (COLUMNS_MAX + 1) * (3 * NAME_BYTES_MAX + 64);

/// Why the text of a table definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaTextError {
    /// Longer than any definition.
    #[error("a table definition of {bytes} bytes exceeds the limit of {TEXT_BYTES_MAX}")]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// Something else than the grammar has at this place.
    #[error("at character {position} of the table definition: expected {expected}, found {found}")]
    Syntax {
        /// Character of the text, from 1.
        position: usize,
        /// What would have been right.
        expected: &'static str,
        /// What was found, quoted and cut.
        found: String,
    },
    /// The primary key names a column that is not defined before it.
    #[error(
        "at character {position} of the table definition: the table has no column {name} \
         before this place"
    )]
    ColumnUnknown {
        /// Character of the text, from 1.
        position: usize,
        /// The name.
        name: String,
    },
    /// The partition key is no prefix of the primary key.
    #[error(
        "at character {position} of the table definition: the partition key must consist of the \
         first columns of the primary key, in its order"
    )]
    PartitionKey {
        /// Character of the text, from 1.
        position: usize,
    },
    /// The text can be read, but the definition is not valid.
    #[error(transparent)]
    Schema(#[from] SchemaError),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Number(&'a str),
    Symbol(char),
    End,
}

/// Reads tokens; always holds the next one.
struct Tokens<'a> {
    text: &'a str,
    /// Where the next token begins, bytes.
    start: usize,
    /// Where it ends, bytes.
    end: usize,
    next: Token<'a>,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Tokens<'a> {
        let mut tokens = Tokens { text, start: 0, end: 0, next: Token::End };
        tokens.advance();
        tokens
    }

    fn advance(&mut self) -> Token<'a> {
        let token = self.next;
        let rest = self.text.get(self.end..).unwrap_or("");
        let trimmed = rest.trim_start();
        self.start = self.text.len() - trimmed.len();
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let length = trimmed.find(|c| !word(c)).unwrap_or(trimmed.len());
        let run = trimmed.get(..length).unwrap_or("");
        (self.next, self.end) = match trimmed.chars().next() {
            None => (Token::End, self.start),
            Some(c) if c.is_ascii_digit() => (Token::Number(run), self.start + length),
            Some(c) if word(c) => (Token::Word(run), self.start + length),
            Some(c) => (Token::Symbol(c), self.start + c.len_utf8()),
        };
        token
    }

    fn position(&self) -> usize {
        self.text.get(..self.start).unwrap_or("").chars().count() + 1
    }

    fn error(&self, expected: &'static str) -> SchemaTextError {
        let found = match self.next {
            Token::End => "the end".to_owned(),
            _ => name_quoted(self.text.get(self.start..self.end).unwrap_or("")),
        };
        SchemaTextError::Syntax { position: self.position(), expected, found }
    }

    fn symbol(&mut self, symbol: char, expected: &'static str) -> Result<(), SchemaTextError> {
        if self.next != Token::Symbol(symbol) {
            return Err(self.error(expected));
        }
        self.advance();
        Ok(())
    }

    /// Takes the next token if it is this symbol.
    fn symbol_if(&mut self, symbol: char) -> bool {
        let found = self.next == Token::Symbol(symbol);
        if found {
            self.advance();
        }
        found
    }

    /// Takes the next token if it is this word.
    fn word_if(&mut self, word: &str) -> bool {
        let found = self.next == Token::Word(word);
        if found {
            self.advance();
        }
        found
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, SchemaTextError> {
        let Token::Word(word) = self.next else { return Err(self.error(expected)) };
        self.advance();
        Ok(word)
    }

    fn number(&mut self, expected: &'static str) -> Result<u8, SchemaTextError> {
        let number = match self.next {
            Token::Number(digits) => digits.parse().ok(),
            _ => None,
        };
        let Some(number) = number else { return Err(self.error(expected)) };
        self.advance();
        Ok(number)
    }
}

impl TableDefinition {
    /// Reads the text form, and validates the definition.
    pub fn parse(text: &str) -> Result<TableDefinition, SchemaTextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(SchemaTextError::TooLong { bytes: text.len() });
        }
        let mut tokens = Tokens::new(text);
        let name = tokens.word("the name of the table")?.to_owned();
        let mut table =
            TableDefinition { name, columns: Vec::new(), key: Vec::new(), partition_columns: 0 };
        tokens.symbol('(', "`(` and the columns")?;
        loop {
            item_parse(&mut tokens, &mut table)?;
            if !tokens.symbol_if(',') {
                break;
            }
        }
        tokens.symbol(')', "`,` or `)`")?;
        tokens.symbol_if(';');
        if tokens.next != Token::End {
            return Err(tokens.error("the end of the definition"));
        }
        if table.partition_columns == 0 {
            table.partition_columns = table.key.len() as u16;
        }
        table.validate()?;
        Ok(table)
    }
}

/// One column, or the primary key, or the partition key.
fn item_parse(tokens: &mut Tokens<'_>, table: &mut TableDefinition) -> Result<(), SchemaTextError> {
    let position = tokens.position();
    let name = tokens.word("a column, `primary key` or `partition key`")?;
    // No type is called `key`, so that columns may be called `primary` and `partition`.
    match name {
        "primary" if tokens.next == Token::Word("key") => {
            if !table.key.is_empty() {
                let (expected, found) = ("only one primary key", "another".to_owned());
                return Err(SchemaTextError::Syntax { position, expected, found });
            }
            tokens.advance();
            names_parse(tokens, |position, name| {
                let unknown = || SchemaTextError::ColumnUnknown { position, name: quoted(name) };
                let index = table.column_index(name).ok_or_else(unknown)?;
                table.key.push(index);
                Ok(())
            })
        }
        "partition" if tokens.next == Token::Word("key") => {
            if table.key.is_empty() || table.partition_columns > 0 {
                let expected = "one partition key, after the primary key";
                let found = "`partition key`".to_owned();
                return Err(SchemaTextError::Syntax { position, expected, found });
            }
            tokens.advance();
            names_parse(tokens, |position, name| {
                let expected = table.key.get(usize::from(table.partition_columns));
                if expected.copied() != table.column_index(name) || expected.is_none() {
                    return Err(SchemaTextError::PartitionKey { position });
                }
                table.partition_columns += 1;
                Ok(())
            })
        }
        _ => {
            let column_type = type_parse(tokens)?;
            let nullable = null_parse(tokens)?;
            // Enough to be refused, and no more of them than that.
            if table.columns.len() <= COLUMNS_MAX {
                let name = name.to_owned();
                table.columns.push(ColumnDefinition { name, column_type, nullable });
            }
            Ok(())
        }
    }
}

fn quoted(name: &str) -> String {
    name_quoted(name)
}

/// `key (NAME, ...)`, from the parenthesis on.
fn names_parse(
    tokens: &mut Tokens<'_>,
    mut visit: impl FnMut(usize, &str) -> Result<(), SchemaTextError>,
) -> Result<(), SchemaTextError> {
    tokens.symbol('(', "`(` and the columns of the key")?;
    loop {
        let position = tokens.position();
        visit(position, tokens.word("the name of a column")?)?;
        if !tokens.symbol_if(',') {
            return tokens.symbol(')', "`,` or `)`");
        }
    }
}

fn null_parse(tokens: &mut Tokens<'_>) -> Result<bool, SchemaTextError> {
    if tokens.word_if("not") {
        if !tokens.word_if("null") {
            return Err(tokens.error("`null`"));
        }
        return Ok(false);
    }
    Ok(tokens.word_if("null"))
}

fn type_parse(tokens: &mut Tokens<'_>) -> Result<ColumnType, SchemaTextError> {
    let column_type = match tokens.next {
        Token::Word("bool") => ColumnType::Bool,
        Token::Word("int2") => ColumnType::Int2,
        Token::Word("int4") => ColumnType::Int4,
        Token::Word("int8") => ColumnType::Int8,
        Token::Word("float8") => ColumnType::Float8,
        Token::Word("text") => ColumnType::Text,
        Token::Word("bytea") => ColumnType::Bytea,
        Token::Word("date") => ColumnType::Date,
        Token::Word("timestamptz") => ColumnType::Timestamptz,
        Token::Word("uuid") => ColumnType::Uuid,
        Token::Word("decimal") => {
            tokens.advance();
            tokens.symbol('(', "`(PRECISION,SCALE)` after `decimal`")?;
            let precision = tokens.number("the precision, 1 to 38")?;
            let mut scale = 0;
            if tokens.symbol_if(',') {
                scale = tokens.number("the scale, 0 up to the precision")?;
            }
            tokens.symbol(')', "`)`")?;
            return Ok(ColumnType::Decimal { precision, scale });
        }
        _ => return Err(tokens.error(TYPES)),
    };
    tokens.advance();
    Ok(column_type)
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            _ => f.write_str(self.kind().name()),
        }
    }
}

impl fmt::Display for TableDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for column in &self.columns {
            let null = if column.nullable { " null" } else { "" };
            write!(f, "{} {}{null}, ", column.name, column.column_type)?;
        }
        f.write_str("primary key (")?;
        names_print(self, &self.key, f)?;
        f.write_str("), partition key (")?;
        let partition = self.key.get(..usize::from(self.partition_columns));
        names_print(self, partition.unwrap_or(&self.key), f)?;
        f.write_str("))")
    }
}

fn names_print(
    table: &TableDefinition,
    columns: &[u16],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    for (position, index) in columns.iter().enumerate() {
        let separator = if position == 0 { "" } else { ", " };
        let name = table.columns.get(usize::from(*index)).map_or("?", |column| &column.name);
        write!(f, "{separator}{name}")?;
    }
    Ok(())
}
