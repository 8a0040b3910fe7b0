//! Tables for other programs and for papers: one frame of typed columns, written in the format that is asked for.

mod delimited;
mod document;
pub mod frame;
mod frames;
mod parquet;
pub mod reference;

use crate::error::EvalError;
use crate::matrix::matrix;
use crate::results::Results;
use crate::summary::Summary;
use frame::Frame;
use serde_json::Value;

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A list of objects.
    Json,
    /// RFC 4180, with a header line.
    Csv,
    /// Apache Parquet, Zstandard.
    Parquet,
    /// A Markdown table.
    Markdown,
    /// A `tabular` with the rules of the booktabs package.
    Latex,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// One row a question and arm, with answer, verdicts, flags and counts.
    Questions,
    /// One row an arm and dataset, with intervals.
    Table,
    /// One row a paired test.
    Pairs,
    /// Arms × datasets, each cell with its interval and a mark where the paired test shows a difference.
    Matrix,
    /// The reference's published figures beside these, where the datasets are public ones.
    Published,
    /// Words that the generator read and that the searcher wrote: totals, means and percentiles as the reference's
    /// `compute_context_stats.py` has them.
    Contexts,
}

impl Format {
    /// What is written when nothing else is asked for: rows for programs, the matrix for readers.
    pub fn usual(self) -> What {
        match self {
            Self::Json | Self::Csv | Self::Parquet => What::Questions,
            Self::Markdown | Self::Latex => What::Matrix,
        }
    }
}

/// Writes results, of a finished evaluation or of one that is going on.
pub fn export(
    results: &Results,
    identity: &Value,
    summary: &Summary,
    what: What,
    format: Format,
) -> Result<Vec<u8>, EvalError> {
    let frame = match what {
        What::Questions => frames::questions(results, identity),
        What::Table => frames::table(summary),
        What::Pairs => frames::pairs(summary),
        What::Matrix => matrix(summary),
        What::Published => crate::published::frame(summary),
        What::Contexts => frames::contexts(results),
    };
    write(&frame, format)
}

/// Writes a frame.
pub fn write(frame: &Frame, format: Format) -> Result<Vec<u8>, EvalError> {
    Ok(match format {
        Format::Json => document::json(frame)?,
        Format::Csv => delimited::csv(frame).into_bytes(),
        Format::Parquet => parquet::parquet(frame)?,
        Format::Markdown => document::markdown(frame).into_bytes(),
        Format::Latex => document::latex(frame).into_bytes(),
    })
}

#[cfg(test)]
mod tests;
