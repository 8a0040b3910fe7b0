//! Exact search with the rows on a GPU. What the GPU finds in f16 is scored again from the rows themselves; a query whose
//! last kept row is not safely below its `k`-th best is searched on the CPU, so ids and scores are the CPU's to the bit.

use super::rows::Rows;
use crate::error::Result;
use half::f16;
use s3_model::{Device, NEAREST_KEPT, Nearest};

/// Rows kept beyond the ones asked for.
const SPARE: usize = 52;
/// How far a GPU's score may be from the exact one, for a query and a row of length one: sums of a thousand products in
/// f32 in any order, and the same with rows rounded to f16.
const SUMS: f32 = 2e-4;
const ROUNDED: f32 = 5e-4;

/// The rows on a GPU.
pub struct OnGpu {
    table: Nearest,
    /// The longest row.
    longest: f32,
    rounded: bool,
}

/// Positions that hold a query's best.
pub struct Kept {
    /// The positions.
    pub positions: Vec<u32>,
    /// No other row has a higher exact score than this; none when no other row is there.
    pub others: Option<f32>,
}

impl OnGpu {
    /// Copies all rows to a device.
    pub fn new(rows: &Rows, device: &Device) -> Result<Self> {
        let mut table = Nearest::new(device, rows.len(), rows.dimensions())?;
        let (mut longest, mut done) = (0f32, 0);
        while done < rows.len() {
            let part = done..rows.len().min(done + Nearest::piece());
            done = part.end;
            let mut values = Vec::with_capacity(part.len() * rows.dimensions());
            for at in part {
                let row = rows.row(at);
                longest = longest.max(row.iter().map(|x| x * x).sum::<f32>().sqrt());
                values.extend(row.into_iter().map(f16::from_f32));
            }
            table.push(&values)?;
        }
        Ok(Self { table, longest, rounded: rows.single() })
    }

    /// Whether a search for so many is for the GPU.
    pub fn takes(&self, k: usize) -> bool {
        k + SPARE <= NEAREST_KEPT
    }

    /// For each query rows that are likely its best, and what the others reach; none where the GPU lost track.
    pub fn search(&self, queries: &[Vec<f32>], k: usize) -> Result<Vec<Option<Kept>>> {
        let found = self.table.search(queries, k + SPARE)?;
        let one = |(query, found): (&Vec<f32>, Option<s3_model::Kept>)| {
            let found = found?;
            let length = query.iter().map(|x| x * x).sum::<f32>().sqrt();
            let slack = length * self.longest * if self.rounded { SUMS + ROUNDED } else { SUMS };
            let complete = found.len() >= self.table.rows();
            let others = if complete { None } else { found.last().map(|(_, score)| score + slack) };
            Some(Kept { positions: found.into_iter().map(|(position, _)| position).collect(), others })
        };
        Ok(queries.iter().zip(found).map(one).collect())
    }
}
