//! What commands print, when nobody reads it to the end. One test: a process that another one starts meanwhile would hold
//! the reader's end open for a moment.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, digest, stderr, stdout};
use std::process::Output;

/// A command whose reader has gone before its first line.
fn unread(world: &World, args: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    world.command(args).stdout(writer).output().unwrap()
}

#[test]
fn a_command_ends_quietly_when_its_reader_has_gone() {
    let world = World::new();
    digest(&world.run());
    let export = world.s3(&["report", "--export", "csv"]);
    assert_eq!(stdout(&export), "dataset,id,correct\n", "{}", stderr(&export));
    for args in [
        &World::RUN[..],
        &["plan", "run.yaml"],
        &["plan", "run.yaml", "--output", "wide"],
        &["plan", "run.yaml", "--output", "yaml"],
        &["plan", "run.yaml", "--output", "json"],
        &["status"],
        &["logs"],
        &["report"],
        &["report", "--export", "csv"],
        &["ask", "What is the capital of France?"],
    ] {
        let output = unread(&world, args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(141), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("rror"), "{args:?}: {said}");
    }
    assert_eq!(world.alive(), [0; 0]);
}
