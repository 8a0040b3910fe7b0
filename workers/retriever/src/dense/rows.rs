//! The vectors themselves, as f16 or f32, mapped from their file or held in memory.

use super::file::{Data, Header, Kind, Writer};
use super::kernels::{LANES, Level, ask_for, widen};
use crate::error::{Result, RetrieverError};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use std::ops::Range;
use std::path::Path;

enum Source {
    File(Data, Kind),
    Half(Vec<f16>),
}

enum Values<'a> {
    Half(&'a [f16]),
    Single(&'a [f32]),
}

/// Rows of equal length.
pub struct Rows {
    source: Source,
    dimensions: usize,
    count: usize,
    level: Level,
}

impl Rows {
    /// Rows run together in memory.
    pub fn new(values: Vec<f16>, dimensions: usize) -> Self {
        let count = values.len() / dimensions;
        Self { source: Source::Half(values), dimensions, count, level: Level::detect() }
    }

    /// Rows of a file that [`RowWriter`] wrote.
    pub fn open(path: &Path) -> Result<Self> {
        let (header, data) = Data::open(path)?;
        let size = match header.kind {
            Kind::Half => 2,
            Kind::Single => 4,
            _ => return Err(RetrieverError::content(path, "holds codes where vectors are expected")),
        };
        let Header { dimensions, rows: count, kind } = header;
        if count.checked_mul(dimensions).and_then(|n| n.checked_mul(size)) != Some(data.len()) {
            return Err(RetrieverError::content(path, "its size does not fit its rows; build the index again"));
        }
        Ok(Self { source: Source::File(data, kind), dimensions, count, level: Level::detect() })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Says whether rows will be read here and there, or all in order.
    pub fn read_scattered(&self, scattered: bool) {
        if let Source::File(data, _) = &self.source {
            data.read_scattered(scattered);
        }
    }

    /// Whether they are f32 and not f16.
    pub fn single(&self) -> bool {
        matches!(self.values(), Values::Single(_))
    }

    /// Elements of a row.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Elements of a row padded with zeros to whole lanes.
    pub fn width(&self) -> usize {
        self.dimensions.next_multiple_of(LANES)
    }

    fn values(&self) -> Values<'_> {
        match &self.source {
            Source::Half(values) => Values::Half(values),
            Source::File(data, Kind::Single) => Values::Single(bytemuck::cast_slice(data)),
            Source::File(data, _) => Values::Half(bytemuck::cast_slice::<u8, u16>(data).reinterpret_cast()),
        }
    }

    /// The rows of a range as padded f32, in place where they lie so, else in `scratch`.
    pub fn padded<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let (d, width) = (self.dimensions, self.width());
        if let (Values::Single(values), true) = (self.values(), d == width) {
            return &values[range.start * d..range.end * d];
        }
        scratch.resize(range.len() * width, 0.0);
        for (row, at) in scratch.chunks_exact_mut(width).zip(range) {
            self.read(at, row);
        }
        scratch
    }

    /// Copies one row into the front of `out` and zeros behind it.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        let (row, rest) = out.split_at_mut(self.dimensions);
        let range = at * self.dimensions..(at + 1) * self.dimensions;
        match self.values() {
            Values::Half(values) => widen(self.level, &values[range], row),
            Values::Single(values) => row.copy_from_slice(&values[range]),
        }
        rest.fill(0.0);
    }

    /// One row where it lies as f16 of whole lanes, so that it needs no copy.
    pub fn half(&self, at: usize) -> Option<&[f16]> {
        match self.values() {
            Values::Half(values) if self.dimensions == self.width() => {
                Some(&values[at * self.dimensions..(at + 1) * self.dimensions])
            }
            _ => None,
        }
    }

    /// Says that a row will be read soon.
    pub fn ask_for(&self, at: usize) {
        let range = at * self.dimensions..(at + 1) * self.dimensions;
        match self.values() {
            Values::Half(values) => ask_for(&values[range]),
            Values::Single(values) => ask_for(&values[range]),
        }
    }

    /// One row.
    pub fn row(&self, at: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.dimensions];
        self.read(at, &mut row);
        row
    }
}

/// Writes rows to a file, in order.
pub struct RowWriter {
    writer: Writer,
    dimensions: usize,
    rows: usize,
}

impl RowWriter {
    /// Starts a file of rows of `dimensions` elements.
    pub fn create(path: &Path, kind: Kind, dimensions: usize) -> Result<Self> {
        let writer = Writer::create(path, Header { kind, dimensions, rows: 0 })?;
        Ok(Self { writer, dimensions, rows: 0 })
    }

    /// Adds whole rows of f16.
    pub fn half(&mut self, values: &[f16]) -> Result<()> {
        self.rows += values.len() / self.dimensions;
        self.writer.write(bytemuck::cast_slice(values.reinterpret_cast()))
    }

    /// Adds whole rows of f32.
    pub fn single(&mut self, values: &[f32]) -> Result<()> {
        self.rows += values.len() / self.dimensions;
        self.writer.write(bytemuck::cast_slice(values))
    }

    /// Ends the file; the number of rows.
    pub fn finish(self) -> Result<usize> {
        self.writer.finish(self.rows).map(|()| self.rows)
    }
}
