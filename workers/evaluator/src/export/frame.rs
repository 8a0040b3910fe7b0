//! A table whose columns have one type each.

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// 64 bits.
    Whole,
    /// 64 bits.
    Real,
    /// Yes or no.
    Truth,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// None.
    Null,
    /// Of [`Kind::Text`].
    Text(String),
    /// Of [`Kind::Whole`].
    Whole(i64),
    /// Of [`Kind::Real`].
    Real(f64),
    /// Of [`Kind::Truth`].
    Truth(bool),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Whole(number as i64)
    }
}
impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}
impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Whole(number as i64)
    }
}
impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}
impl From<bool> for Cell {
    fn from(yes: bool) -> Self {
        Self::Truth(yes)
    }
}
impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A column's name and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: Kind,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows of one cell a column.
    pub rows: Vec<Vec<Cell>>,
}

impl Frame {
    /// An empty table of these columns.
    pub fn new(columns: &[(&str, Kind)]) -> Self {
        let columns = columns.iter().map(|(name, kind)| Column { name: (*name).to_owned(), kind: *kind }).collect();
        Self { columns, rows: Vec::new() }
    }
}

/// A number as it is read back: the shortest text with the same value.
pub(super) fn plain(cell: &Cell) -> Option<String> {
    Some(match cell {
        Cell::Null => return None,
        Cell::Text(text) => text.clone(),
        Cell::Whole(number) => number.to_string(),
        Cell::Real(number) => number.to_string(),
        Cell::Truth(yes) => yes.to_string(),
    })
}

/// A number as people read it.
pub(super) fn shown(cell: &Cell) -> String {
    match cell {
        Cell::Null => "–".into(),
        Cell::Real(number) => format!("{number:.4}").replace('-', "−"),
        other => plain(other).unwrap_or_default(),
    }
}
