//! `s3 index`: search indexes without custom resources. The work is `s3-retriever`'s; this writes its configuration,
//! shows how far it is, and makes tables of its answers.

mod ask;
mod make;
mod worker;

use crate::text::Problem;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// What can be done with an index.
#[derive(Subcommand)]
pub enum IndexCommand {
    /// Makes a corpus searchable; killed and run again, it goes on.
    Build(make::BuildArgs),
    /// Takes the parts of a published FAISS index (kind Flat) with its corpus and encoder.
    Import(make::ImportArgs),
    /// Shows which versions a folder holds, and what each was made of.
    Inspect(ask::InspectArgs),
    /// Reads a whole index and checks every sum.
    Verify(ask::VerifyArgs),
    /// Shows what queries find, in a folder or at a server.
    Search(ask::SearchArgs),
    /// Compares what two indexes find for the same queries.
    Compare(ask::CompareArgs),
}

/// Runs one of them.
pub fn run(command: &IndexCommand) -> Result<ExitCode, Problem> {
    match command {
        IndexCommand::Build(args) => make::build(args),
        IndexCommand::Import(args) => make::import(args),
        IndexCommand::Inspect(args) => ask::inspect(args),
        IndexCommand::Verify(args) => ask::verify(args),
        IndexCommand::Search(args) => ask::search(args),
        IndexCommand::Compare(args) => ask::compare(args),
    }
}

/// A path as other processes see it.
fn absolute(path: &std::path::Path) -> Result<PathBuf, Problem> {
    std::path::absolute(path).map_err(|error| Problem::io("find", path, &error))
}
