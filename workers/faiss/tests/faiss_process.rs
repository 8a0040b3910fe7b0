//! The process itself: it builds and searches every kind, and what kills it or what it should not believe is an error.
#![allow(clippy::unwrap_used)]

use s3_faiss::{Child, FaissError, Patience};
use std::path::Path;
use std::time::Duration;

const D: usize = 16;

fn patience() -> Patience<'static> {
    Patience::of(Duration::from_secs(100))
}

/// Unit vectors that follow from their numbers.
fn rows(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut all: Vec<f32> = (0..count * D)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect();
    for row in all.chunks_exact_mut(D) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row {
            *x /= norm;
        }
    }
    all
}

fn build(factory: &str, rows: &[f32], path: &Path) -> Result<(), FaissError> {
    let mut child = Child::create(D, factory, factory.contains("HNSW").then_some(80), 1, patience())?;
    if !child.about().trained {
        child.train(rows.chunks(100 * D), patience())?;
    }
    for part in rows.chunks(300 * D) {
        child.add(part, patience())?;
    }
    assert_eq!(child.about().rows as usize, rows.len() / D);
    child.write(path, patience())
}

#[test]
fn every_kind_is_built_read_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let rows = rows(1000);
    for (factory, parameter, exact) in [
        ("Flat", None, true),
        ("IVF8,Flat", Some("nprobe"), true),
        ("IVF8,SQfp16", Some("nprobe"), false),
        ("IVF8,PQ8np", Some("nprobe"), false),
        ("HNSW16,Flat", Some("efSearch"), true),
        ("HNSW16,SQfp16", Some("efSearch"), false),
        ("SQ4", None, false),
        ("OPQ4,PQ4np", None, false),
        ("OPQ8,IVF4,PQ8np", Some("nprobe"), false),
        ("PCA8,IVF4,Flat", Some("nprobe"), false),
    ] {
        build(factory, &rows, &path).unwrap();
        let mut child = Child::open(&path, 2, patience()).unwrap();
        assert_eq!((child.about().dimensions as usize, child.about().rows), (D, 1000), "{factory}");
        assert_eq!(child.about().metric, "InnerProduct");
        assert_eq!(child.effort(64, patience()).unwrap().as_deref(), parameter, "{factory}");
        let found = child.search(&rows[..40 * D], 10, patience()).unwrap();
        let own = found.iter().enumerate().filter(|(at, found)| found.contains(&(*at as u32))).count();
        assert!(found.len() == 40 && own >= if factory.starts_with("PCA") { 30 } else { 38 }, "{factory}: {own}");
        let kept = child.rows(500, 20, patience()).unwrap();
        let worst = kept.iter().zip(&rows[500 * D..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < if exact { 1e-6 } else { 0.7 }, "{factory}: {worst}");
    }
    // fewer lists than it takes to find ten: what is missing is not there
    build("IVF250,Flat", &rows, &path).unwrap();
    let mut child = Child::open(&path, 1, patience()).unwrap();
    child.effort(1, patience()).unwrap();
    let found = child.search(&rows[..9 * D], 100, patience()).unwrap();
    assert!(found.iter().all(|found| !found.is_empty() && found.len() < 100));
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let rows = rows(300);
    for (factory, says) in [("Nonsense7", "Nonsense7"), ("IVF301,Flat", "300"), ("IDMap,Flat", "add")] {
        let error = build(factory, &rows, &path).unwrap_err();
        assert!(matches!(error, FaissError::Refused { .. }) && error.to_string().contains(says), "{error}");
    }
    let missing = Child::open(&path, 1, patience()).err().unwrap();
    assert!(matches!(missing, FaissError::Refused { .. }), "{missing}");
    std::fs::write(&path, b"no index").unwrap();
    assert!(matches!(Child::open(&path, 1, patience()).err().unwrap(), FaissError::Refused { .. }));

    build("Flat", &rows, &path).unwrap();
    let mut child = Child::open(&path, 1, patience()).unwrap();
    assert!(matches!(child.rows(290, 20, patience()), Err(FaissError::Refused { .. })));
    let late = child.search(&rows, 3, Patience::of(Duration::ZERO)).unwrap_err();
    assert!(matches!(late, FaissError::Late { .. }), "{late}");
    // and is gone
    assert!(matches!(child.search(&rows, 3, patience()), Err(FaissError::Ended { .. })));
    let mut child = Child::open(&path, 1, patience()).unwrap();
    let stop = Patience { stop: &|| true, ..patience() };
    assert!(matches!(child.search(&rows, 3, stop), Err(FaissError::Interrupted)));
}

/// Three flipped bytes a file crash FAISS' loader or search in every fifth or so: here each is an error of this one
/// file, or rows that are there.
#[test]
fn damaged_files_end_the_process_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows(600);
    let (mut refused, mut ended, mut answered) = (0, 0, 0);
    let limit = Patience::of(Duration::from_secs(10));
    let mut state = 9usize;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for factory in ["HNSW16,Flat", "IVF8,Flat", "IVF8,PQ8np"] {
        let path = folder.path().join("whole");
        build(factory, &rows, &path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for round in 0..20 {
            let mut damaged = whole.clone();
            for _ in 0..3 {
                // a third of them where the numbers are that the rest is read by
                let at = if round % 3 == 0 { next(200) } else { next(whole.len()) };
                damaged[at] ^= 1 << next(8);
            }
            // and a third with a stretch that says nothing sensible
            if round % 3 == 1 {
                let at = next(whole.len() - 256);
                damaged[at..at + 256].fill(0x7d);
            }
            let path = folder.path().join("damaged");
            std::fs::write(&path, &damaged).unwrap();
            let asked = Child::open(&path, 1, limit).and_then(|mut child| {
                let n = child.about().rows;
                let dimensions = child.about().dimensions as usize;
                let queries = vec![0.25; dimensions.min(1 << 16) * 8];
                let found = child.search(&queries[..queries.len() / dimensions * dimensions], 10, limit)?;
                assert!(found.iter().flatten().all(|row| u64::from(*row) < n));
                Ok(())
            });
            match asked {
                Ok(()) => answered += 1,
                Err(FaissError::Refused { .. } | FaissError::Nonsense(_)) => refused += 1,
                Err(FaissError::Ended { .. } | FaissError::Late { .. }) => ended += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    eprintln!("{refused} refused, {ended} ended, {answered} answered");
    assert_eq!(refused + ended + answered, 60);
    assert!(refused > 0 && ended > 0);
    // what it was made for goes on working
    let path = folder.path().join("whole");
    assert_eq!(Child::open(&path, 1, patience()).unwrap().about().rows, 600);
}
