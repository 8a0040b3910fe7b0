//! Candidates by an index of FAISS', which lives in a process of its own: what ends that process is an error of the
//! searches it was to answer, and the next search starts it again, a few times.
//!
//! FAISS only says which rows may be best. They are scored again from the rows themselves, so an answer's scores are
//! exact whatever it says, and row numbers that do not exist are refused.

use super::rows::Rows;
use crate::error::{Result, RetrieverError};
use s3_config::{DenseKind, Structure};
use s3_faiss::{Child, FaissError, Patience};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reading an index file.
const OPEN: Duration = Duration::from_secs(1800);
/// A search.
const SEARCH: Duration = Duration::from_secs(60);
/// A step of a build; it is given up before when the build is asked to stop.
const STEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ends of the process that are borne with …
const STARTS: usize = 5;
/// … in this time.
const WITHIN: Duration = Duration::from_secs(600);
/// Rows added at once.
const ADD: usize = 8192;
/// Rows of the training sample for each list or centroid, and at least so many.
const PER_LIST: usize = 64;
const SAMPLE: usize = 20_000;
/// Most rows of a training sample.
const MOST: usize = 2_000_000;

/// An index file and the process that searches it.
pub struct Approximate {
    path: PathBuf,
    shape: (usize, usize),
    threads: usize,
    state: Mutex<State>,
}

struct State {
    child: Option<Child>,
    effort: Option<u32>,
    /// When it was started again.
    starts: VecDeque<Instant>,
}

fn at(path: &Path) -> impl Fn(FaissError) -> RetrieverError + '_ {
    move |source| RetrieverError::Faiss { path: path.to_owned(), source }
}

impl Approximate {
    /// Starts a process with the index of a file, which has to be one over these rows.
    pub fn open(path: &Path, rows: &Rows) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let shape = (rows.len(), rows.dimensions());
        let child = start(path, shape, threads)?;
        let state = Mutex::new(State { child: Some(child), effort: None, starts: VecDeque::new() });
        Ok(Self { path: path.to_owned(), shape, threads, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how many lists a search visits, or how many candidates it keeps. Says what of the two the index has.
    pub fn set_effort(&self, effort: u32) -> Result<Option<String>> {
        let mut state = self.state();
        state.effort = Some(effort);
        let child = self.running(&mut state)?;
        child.effort(effort, Patience::of(SEARCH)).map_err(at(&self.path))
    }

    /// The process, started again where it has ended.
    fn running<'a>(&self, state: &'a mut State) -> Result<&'a mut Child> {
        let State { child, effort, starts } = state;
        if let Some(child) = child {
            return Ok(child);
        }
        while starts.front().is_some_and(|then| then.elapsed() > WITHIN) {
            starts.pop_front();
        }
        if starts.len() >= STARTS {
            let reason = format!(
                "FAISS' process ended {STARTS} times in {} minutes; see the log for what ended it",
                WITHIN.as_secs() / 60
            );
            return Err(RetrieverError::content(&self.path, reason));
        }
        starts.push_back(Instant::now());
        let mut started = start(&self.path, self.shape, self.threads)?;
        if let Some(effort) = effort {
            started.effort(*effort, Patience::of(SEARCH)).map_err(at(&self.path))?;
        }
        Ok(child.insert(started))
    }

    /// Positions of rows that may be the best for each query; fewer than `k` where the index finds no more.
    pub fn candidates(&self, queries: &[Vec<f32>], k: usize) -> Result<Vec<Vec<u32>>> {
        let flat: Vec<f32> = queries.iter().flatten().copied().collect();
        let mut state = self.state();
        let mut again = true;
        loop {
            match self.running(&mut state)?.search(&flat, k, Patience::of(SEARCH)) {
                Ok(found) => return Ok(found),
                Err(error @ FaissError::Refused { .. }) => return Err(at(&self.path)(error)),
                Err(error) => {
                    tracing::error!(index = %self.path.display(), %error, "a search ended FAISS' process");
                    state.child = None;
                    // it may have been ended from outside; a query that ends it twice is at fault itself
                    if !(again && matches!(error, FaissError::Ended { .. })) {
                        return Err(at(&self.path)(error));
                    }
                    again = false;
                }
            }
        }
    }
}

fn start(path: &Path, (rows, dimensions): (usize, usize), threads: usize) -> Result<Child> {
    let child = Child::open(path, threads, Patience::of(OPEN)).map_err(at(path))?;
    let about = child.about();
    if about.rows != rows as u64 || about.dimensions as usize != dimensions || !about.trained {
        let reason = format!(
            "it holds {} vectors of {} where {rows} of {dimensions} are expected; build the index again",
            about.rows, about.dimensions
        );
        return Err(RetrieverError::content(path, reason));
    }
    Ok(child)
}

/// FAISS' name for a kind of index over `n` rows of `d`.
pub fn factory(kind: DenseKind, structure: &Structure, n: usize, d: usize) -> Result<String> {
    let lists = || match structure.lists {
        Some(lists) => lists as usize,
        // the usual four roots, of which each wants some rows to be learnt from
        None => (4.0 * (n as f64).sqrt()) as usize,
    };
    let lists = || if structure.lists.is_some() { lists() } else { lists().min(n / 40).max(1) };
    match (kind, &structure.factory) {
        // rows are kept as f16 everywhere, so nothing is lost
        (DenseKind::IvfFlat, _) => Ok(format!("IVF{},SQfp16", lists())),
        (DenseKind::IvfPq, _) => {
            let bytes = structure.code_bytes.map_or_else(|| parts(d), |bytes| bytes as usize);
            if bytes == 0 || !d.is_multiple_of(bytes) {
                return Err(RetrieverError::Invalid(format!(
                    "dense.index.codeBytes is {bytes}, which does not divide the vectors' {d} dimensions; choose a divisor"
                )));
            }
            // without the ordering of codes for Hamming distances, which nothing here uses and which takes minutes
            Ok(format!("IVF{},PQ{bytes}np", lists()))
        }
        (DenseKind::Hnsw, _) => Ok(format!("HNSW{},SQfp16", structure.neighbors.unwrap_or(32))),
        (DenseKind::Factory, Some(factory)) => Ok(factory.clone()),
        (DenseKind::Factory, None) => Err(RetrieverError::Invalid(
            "dense.index.kind Factory needs dense.index.factory, such as `OPQ64,IVF4096,PQ64`".to_owned(),
        )),
        (other, _) => Err(RetrieverError::Internal(format!("{other:?} is not one of FAISS' kinds"))),
    }
}

/// Bytes of a product-quantised vector: the most that divide its dimensions and are an eighth of them.
fn parts(d: usize) -> usize {
    (1..=d.div_ceil(8)).rev().find(|parts| d.is_multiple_of(*parts)).unwrap_or(1)
}

/// Positions of the training sample: one from each of `count` equal stretches.
fn sample(n: usize, count: usize) -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ n as u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let stretch = |at: usize| at * n / count..(at + 1) * n / count;
    (0..count).map(|at| stretch(at).start + next(stretch(at).len().max(1))).collect()
}

/// What a build shows and asks meanwhile.
pub struct Building<'a> {
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
    /// Rows of the training sample, then rows added so far.
    pub progress: &'a dyn Fn(&'static str, u64, u64),
}

/// Makes the index of a kind over rows and writes it to a file.
pub fn build(kind: DenseKind, structure: &Structure, rows: &Rows, path: &Path, building: &Building<'_>) -> Result<()> {
    let (n, d) = (rows.len(), rows.dimensions());
    let factory = factory(kind, structure, n, d)?;
    let patience = Patience { limit: STEP, stop: building.stop };
    let failed = at(path);
    tracing::info!(%factory, vectors = n, "making FAISS' index");
    let threads = rayon::current_num_threads();
    let mut child = Child::create(d, &factory, structure.ef_construction, threads, patience).map_err(&failed)?;
    if !child.about().trained {
        let lists: usize = factory
            .split([',', '_'])
            .find_map(|part| part.strip_prefix("IVF"))
            .and_then(|lists| lists.trim_end_matches('K').parse().ok())
            .unwrap_or(0);
        let count = (PER_LIST * lists).clamp(SAMPLE, MOST).min(n);
        (building.progress)("train index", 0, count as u64);
        let per_frame = child.frame_rows().min(ADD);
        let parts: Vec<Vec<f32>> = sample(n, count)
            .chunks(per_frame)
            .map(|positions| positions.iter().flat_map(|position| rows.row(*position)).collect())
            .collect();
        child.train(parts.iter().map(Vec::as_slice), patience).map_err(&failed)?;
    }
    let mut done = 0;
    while done < n {
        (building.progress)("fill index", done as u64, n as u64);
        let part = done..n.min(done + child.frame_rows().min(ADD));
        done = part.end;
        let part: Vec<f32> = part.flat_map(|position| rows.row(position)).collect();
        child.add(&part, patience).map_err(&failed)?;
    }
    child.write(path, patience).map_err(&failed)
}

/// An index file of any of FAISS' kinds, read row by row.
pub struct Reading {
    child: Child,
    path: PathBuf,
    next: u64,
}

impl Reading {
    /// Opens a file; refuses one by whose metric the best are not those of an inner product.
    pub fn open(path: &Path) -> Result<Self> {
        let child =
            Child::open(path, rayon::current_num_threads(), Patience::of(OPEN)).map_err(|error| match error {
                // what FAISS cannot bear in a file that it is given for the first time is the file's
                error @ (FaissError::Ended { .. } | FaissError::Nonsense(_) | FaissError::Refused { .. }) => {
                    RetrieverError::content(path, format!("{error}; it is no index that FAISS reads: fetch it again"))
                }
                error => at(path)(error),
            })?;
        let metric = &child.about().metric;
        if metric != "InnerProduct" && metric != "L2" {
            let reason = format!("its metric is {metric}; indexes of inner products and of L2 are read");
            return Err(RetrieverError::content(path, reason));
        }
        Ok(Self { child, path: path.to_owned(), next: 0 })
    }

    /// Vectors and their elements.
    pub fn shape(&self) -> (u64, usize) {
        (self.child.about().rows, self.child.about().dimensions as usize)
    }

    /// The next rows, run together; empty after the last.
    pub fn next_rows(&mut self, stop: &dyn Fn() -> bool) -> Result<Vec<f32>> {
        let (rows, dimensions) = self.shape();
        let count = (rows - self.next).min(self.child.frame_rows() as u64);
        if count == 0 {
            return Ok(Vec::new());
        }
        let patience = Patience { limit: OPEN, stop };
        let values = self.child.rows(self.next, count as usize, patience).map_err(|error| match error {
            FaissError::Refused { reason, .. } => RetrieverError::content(
                &self.path,
                format!("FAISS does not give the vectors of this kind of index back ({reason}); build it here"),
            ),
            error => at(&self.path)(error),
        })?;
        let l2 = self.child.about().metric == "L2";
        for (row, values) in values.chunks_exact(dimensions).enumerate() {
            let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
            let row = self.next + row as u64;
            if !norm.is_finite() {
                return Err(RetrieverError::content(
                    &self.path,
                    format!("row {row} holds something that is no number"),
                ));
            }
            // of unit vectors the nearest have the largest inner products; codes are nearly so
            if l2 && !(0.5..=1.5).contains(&norm) {
                let reason =
                    format!("its metric is L2 and row {row} has length {norm}; only normalised vectors are served");
                return Err(RetrieverError::content(&self.path, reason));
            }
        }
        self.next += count;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn factories_follow_from_the_vectors() {
        let none = Structure::default();
        let name = |kind, structure: &Structure, n, d| factory(kind, structure, n, d).unwrap();
        assert_eq!(name(DenseKind::IvfFlat, &none, 1_000_000, 384), "IVF4000,SQfp16");
        assert_eq!(name(DenseKind::IvfFlat, &none, 700, 32), "IVF17,SQfp16");
        assert_eq!(name(DenseKind::IvfFlat, &none, 3, 32), "IVF1,SQfp16");
        assert_eq!(name(DenseKind::IvfPq, &none, 1_000_000, 768), "IVF4000,PQ96np");
        assert_eq!(name(DenseKind::IvfPq, &none, 1_000_000, 50), "IVF4000,PQ5np");
        assert_eq!(name(DenseKind::Hnsw, &none, 10, 4), "HNSW32,SQfp16");
        let set = Structure {
            lists: Some(9),
            code_bytes: Some(7),
            neighbors: Some(5),
            factory: Some("Flat".into()),
            ..none.clone()
        };
        assert_eq!(name(DenseKind::IvfPq, &set, 10, 49), "IVF9,PQ7np");
        assert_eq!(name(DenseKind::Hnsw, &set, 10, 49), "HNSW5,SQfp16");
        assert_eq!(name(DenseKind::Factory, &set, 10, 49), "Flat");
        assert!(factory(DenseKind::IvfPq, &set, 10, 48).unwrap_err().to_string().contains("divisor"));
        assert!(factory(DenseKind::Factory, &none, 10, 48).is_err());
    }

    #[test]
    fn samples_are_spread_and_repeat() {
        for (n, count) in [(10, 10), (1000, 64), (100_000, 20_000)] {
            let found = sample(n, count);
            assert!(found.windows(2).all(|pair| pair[0] < pair[1]) && found.iter().all(|at| *at < n), "{n} {count}");
            assert_eq!((found.len(), &found), (count, &sample(n, count)));
        }
    }
}
