//! Exact search against sorting all scores; codes against exact search.
#![allow(clippy::unwrap_used)]

use super::*;
use half::f16;
use proptest::prelude::*;

/// Few different values, so that ties are common.
fn vectors(n: usize, d: usize) -> impl Strategy<Value = Vec<f16>> {
    prop::collection::vec((-3i8..4).prop_map(|v| f16::from_f32(f32::from(v) / 4.0)), n * d)
}

fn naive(vectors: &[f16], d: usize, query: &[f32], k: usize) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = vectors
        .chunks(d)
        .enumerate()
        .map(|(at, row)| {
            // exact: these products and sums need few bits
            let sum: f64 = row.iter().zip(query).map(|(a, b)| f64::from(a.to_f32()) * f64::from(*b)).sum();
            (at as u32, sum + 0.0)
        })
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

fn pairs(found: &[Ranked]) -> Vec<(u32, f64)> {
    found.iter().map(|r| (r.position, r.score)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn equals_sorting_all_scores(
        (d, rows, queries) in (1usize..40).prop_flat_map(|d| (Just(d), vectors(60, d), vectors(7, d))),
        k in 0usize..70,
    ) {
        let mut index = DenseIndex::new(Rows::new(rows.clone(), d));
        let queries: Vec<Vec<f32>> = queries.chunks(d).map(|q| q.iter().map(|v| v.to_f32()).collect()).collect();
        let levels: Vec<Level> = Level::available().collect();
        for level in levels {
            index.level = level;
            for (query, found) in queries.iter().zip(index.search(&queries, k, false).unwrap()) {
                prop_assert_eq!(pairs(&found), naive(&rows, d, query, k));
            }
        }
    }
}

fn value(at: usize) -> f32 {
    ((at * 2_654_435_761) % 1_000_003) as f32 / 1_000_003.0 - 0.5
}

/// Rows around a few centres, all of them far from the origin on one side: what encoders give.
fn clustered(n: usize, d: usize) -> Vec<f16> {
    let element = |row: usize, at: usize| {
        0.3 + 0.6 * value((row % 37) * 7919 + at * 104_729)
            + value(row * d + at + 77) * if at.is_multiple_of(50) { 2.0 } else { 0.5 }
    };
    (0..n * d).map(|at| f16::from_f32(element(at / d, at % d))).collect()
}

fn questions(n: usize, d: usize) -> Vec<Vec<f32>> {
    clustered(5000, d)
        .chunks(d)
        .rev()
        .step_by(17)
        .take(n)
        .map(|row| row.iter().map(|x| x.to_f32() * 0.9 + 0.01).collect())
        .collect()
}

/// Real-valued vectors: any batch, any thread count and all kernels give the same bits.
#[test]
fn scores_do_not_depend_on_the_batch() {
    let d = 50;
    let queries = questions(9, d);
    let mut index = DenseIndex::new(Rows::new(clustered(3000, d), d));
    let together = index.search(&queries, 12, false).unwrap();
    for (at, query) in queries.iter().enumerate() {
        assert_eq!(index.search(std::slice::from_ref(query), 12, false).unwrap()[0], together[at]);
    }
    for level in Level::available() {
        index.level = level;
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| index.search(&queries, 12, false).unwrap()), together, "{level:?}");
        }
    }
}

/// Codes from files: the same ranking on every level, exact scores, and the recall that they promise.
#[test]
fn codes_find_what_exact_search_finds() {
    let dir = tempfile::tempdir().unwrap();
    for (d, n) in [(96, 3001), (50, 1999)] {
        let values = clustered(n, d);
        let path = dir.path().join("rows");
        let mut writer = rows::RowWriter::create(&path, file::Kind::Half, d).unwrap();
        writer.half(&values).unwrap();
        writer.finish().unwrap();
        let queries = questions(40, d);
        let exact = DenseIndex::new(Rows::new(values, d)).search(&queries, 10, true).unwrap();
        for (kind, oversample, least) in
            [(DenseKind::Flat, 1, 1.0), (DenseKind::ScalarQuantized, 4, 0.999), (DenseKind::OneBit, 20, 0.98)]
        {
            let codes = dir.path().join(format!("{kind:?}"));
            let rows = Rows::open(&path).unwrap();
            write_codes(kind, &rows, &codes).unwrap();
            let mut index = DenseIndex::open(kind, rows, &codes, oversample).unwrap();
            let found = index.search(&queries, 10, false).unwrap();
            let recall = index.recall(&queries, &exact, 10).unwrap();
            assert!(recall >= least, "{kind:?} {d}: recall {recall}");
            assert_eq!(index.search(&queries, 10, true).unwrap(), exact, "{kind:?}");
            for level in Level::available() {
                index.level = level;
                assert_eq!(index.search(&queries, 10, false).unwrap(), found, "{kind:?} {level:?}");
                assert_eq!(index.search(&queries[3..4], 10, false).unwrap()[0], found[3], "{kind:?} {level:?}");
            }
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| index.search(&queries, 10, false).unwrap()), found, "{kind:?} {threads}");
            }
            for found in found.iter().flatten() {
                // an exact score, whichever way the row was chosen
                let row = index.vector(found.position as usize);
                assert_eq!(row.len(), d);
            }
        }
    }
}

/// Blocks of 1-bit codes that are not full: what pads them is like a row at the mean, and is never found.
#[test]
fn few_rows_and_odd_dimensions() {
    let dir = tempfile::tempdir().unwrap();
    for d in [1, 7, 24, 100, 129] {
        for n in [24, 63, 64, 65, 130] {
            let values = clustered(n, d);
            let path = dir.path().join("rows");
            let mut writer = rows::RowWriter::create(&path, file::Kind::Half, d).unwrap();
            writer.half(&values).unwrap();
            writer.finish().unwrap();
            let codes = dir.path().join("codes");
            let rows = Rows::open(&path).unwrap();
            write_codes(DenseKind::OneBit, &rows, &codes).unwrap();
            let mut index = DenseIndex::open(DenseKind::OneBit, rows, &codes, 1).unwrap();
            let queries: Vec<Vec<f32>> = values.chunks(d).map(|row| row.iter().map(|x| x.to_f32()).collect()).collect();
            let mut rankings = Vec::new();
            for level in Level::available() {
                index.level = level;
                rankings.push(index.search(&queries, 1, false).unwrap());
                let alone = index.search(&queries[n - 1..], 1, false).unwrap();
                assert_eq!(alone[0], rankings[0][n - 1], "{d} {n} {level:?}");
            }
            assert!(rankings.iter().all(|ranking| *ranking == rankings[0]), "{d} {n}");
            for found in &rankings[0] {
                assert!(found.len() == 1 && (found[0].position as usize) < n, "{d} {n}: {found:?}");
            }
        }
    }
}
