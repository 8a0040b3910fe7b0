//! Every question is in one quadrant, equal ids are told apart, and what only one side was asked is in no figure.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::report::samples;

#[test]
fn quadrants_and_tests_by_hand() {
    let results = samples::results(&samples::config());
    let side = |arm| Side { results: &results, arm };
    // s3 is right on the first four of six, rag on even ones
    let found = compare(side("s3"), side("rag")).unwrap();
    assert_eq!((found.n, found.won, found.lost, found.both, found.neither, found.unpaired), (6, 2, 1, 2, 1, 0));
    assert!((found.difference.value - 1.0 / 6.0).abs() < 1e-12 && (found.p - 1.0).abs() < 1e-12);
    assert_eq!(found.questions.len(), 6, "two questions share an id and are two");
    let back = compare(side("rag"), side("s3")).unwrap();
    assert_eq!((back.won, back.lost), (1, 2));
    let mut short = results.clone();
    short.rows.retain(|row| row.place != 5);
    let found = compare(side("s3"), Side { results: &short, arm: "rag" }).unwrap();
    assert_eq!((found.n, found.unpaired), (5, 1));
    assert!(compare(side("s3"), side("nobody")).unwrap_err().to_string().contains("direct, rag, s3"));
    assert_eq!(usual_arm(&results).unwrap(), "s3");
    let text = text(&found, ["a", "b"], &[Quadrant::Won, Quadrant::Lost], 1);
    assert!(text.contains("won (2)") && text.contains("and 1 more") && text.contains("p = "), "{text}");
    assert_eq!(frame(&found).rows.len(), 5);
}
