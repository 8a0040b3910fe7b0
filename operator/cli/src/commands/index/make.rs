//! `s3 index build` and `import`.

use super::absolute;
use super::worker::Call;
use crate::out::Out;
use crate::text::{Problem, bytes, thousands};
use clap::{Args, ValueEnum};
use s3_config::{
    CorpusConfig, DatasetConfig, DenseConfig, DenseIndexConfig, DenseKind, DeviceKind, IndexBuildConfig, LexicalConfig,
    Pooling, Runtime, Structure, VectorsConfig,
};
use s3_telemetry::Outcome;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How vectors are searched.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// All of them, exactly.
    Flat,
    /// By 8 bits a dimension, the best scored again exactly.
    ScalarQuantized,
    /// By 1 bit a dimension, the best scored again exactly.
    OneBit,
    /// By FAISS' inverted lists of rows, the best scored again exactly.
    IvfFlat,
    /// By FAISS' inverted lists of product-quantised rows, the best scored again exactly.
    IvfPq,
    /// By FAISS' graph, the best scored again exactly.
    Hnsw,
    /// By what --factory says, the best scored again exactly.
    Factory,
}

/// How token states become one vector.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Pool {
    Mean,
    Cls,
}

#[derive(Args)]
struct CorpusArgs {
    /// Passages: a file, or a folder of files in Hugging Face's or Anserini's layout; .jsonl, .json, .tsv (also .gz and
    /// .zst) and .parquet.
    #[arg(long, value_name = "FILE|DIR")]
    corpus: PathBuf,
    /// Expected sha256 of the corpus; of a folder that of `sha256sum`'s list of its files.
    #[arg(long, value_name = "HEX")]
    corpus_sha256: Option<String>,
    /// Only the first this many passages.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Reports how much of this question file the corpus can answer; may be given several times.
    #[arg(long = "audit", value_name = "NAME=FILE")]
    audits: Vec<String>,
}

#[derive(Args)]
struct EncoderArgs {
    /// How token states become one vector.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pooling: Pool,
    /// Put before a query (`query: ` for E5).
    #[arg(long, default_value = "", value_name = "TEXT")]
    query_prefix: String,
    /// Put before a passage (`passage: ` for E5).
    #[arg(long, default_value = "", value_name = "TEXT")]
    passage_prefix: String,
    /// Longer texts are cut, tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
}

#[derive(Args)]
struct PlaceArgs {
    /// Folder to publish in.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Folder for unfinished work; by default beside the output.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Threads; all cores by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Prints the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// How FAISS' kinds are made; what is not given follows from the vectors.
#[derive(Args)]
struct StructureArgs {
    /// Inverted lists, for ivf-flat and ivf-pq.
    #[arg(long, value_name = "N")]
    lists: Option<u32>,
    /// Lists visited per query at least, for ivf-flat, ivf-pq and factory.
    #[arg(long, value_name = "N")]
    probes: Option<u32>,
    /// Bytes per vector, for ivf-pq.
    #[arg(long, value_name = "N")]
    code_bytes: Option<u32>,
    /// Neighbours per node, for hnsw.
    #[arg(long, value_name = "N")]
    neighbors: Option<u32>,
    /// Candidates while building, for hnsw.
    #[arg(long, value_name = "N")]
    ef_construction: Option<u32>,
    /// Candidates while searching at least, for hnsw and factory.
    #[arg(long, value_name = "N")]
    ef_search: Option<u32>,
    /// FAISS' factory string, for factory.
    #[arg(long, value_name = "TEXT")]
    factory: Option<String>,
}

impl StructureArgs {
    /// The same rules that the custom resource has.
    fn of(&self, kind: Kind) -> Result<Structure, Problem> {
        let ivf = matches!(kind, Kind::IvfFlat | Kind::IvfPq);
        let (hnsw, factory) = (matches!(kind, Kind::Hnsw), matches!(kind, Kind::Factory));
        for (given, option, belongs) in [
            (self.lists.is_some(), "--lists", ivf),
            (self.probes.is_some(), "--probes", ivf || factory),
            (self.code_bytes.is_some(), "--code-bytes", matches!(kind, Kind::IvfPq)),
            (self.neighbors.is_some(), "--neighbors", hnsw),
            (self.ef_construction.is_some(), "--ef-construction", hnsw),
            (self.ef_search.is_some(), "--ef-search", hnsw || factory),
            (self.factory.is_some(), "--factory", factory),
        ] {
            if given && !belongs {
                return Err(Problem::input(format!("{option} does not belong to --kind {kind:?}; see --help")));
            }
        }
        Ok(Structure {
            lists: self.lists,
            probes: self.probes,
            code_bytes: self.code_bytes,
            neighbors: self.neighbors,
            ef_construction: self.ef_construction,
            ef_search: self.ef_search,
            factory: self.factory.clone(),
        })
    }
}

/// Arguments of `s3 index build`.
#[derive(Args)]
pub struct BuildArgs {
    #[command(flatten)]
    corpus: CorpusArgs,
    /// Leaves BM25 out.
    #[arg(long, requires = "encoder")]
    no_lexical: bool,
    /// BM25's term-frequency saturation.
    #[arg(long, default_value_t = 0.9)]
    k1: f64,
    /// BM25's length normalisation.
    #[arg(long, default_value_t = 0.4)]
    b: f64,
    /// Encoder for dense search: a folder with config.json, model.safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    #[command(flatten)]
    encoding: EncoderArgs,
    /// How vectors are searched.
    #[arg(long, value_enum, default_value_t = Kind::Flat)]
    kind: Kind,
    /// Recall that a search by codes must reach, measured.
    #[arg(long, default_value_t = 0.95)]
    recall_target: f64,
    #[command(flatten)]
    structure: StructureArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Arguments of `s3 index import`.
#[derive(Args)]
pub struct ImportArgs {
    /// Parts of the index file, in order.
    #[arg(long = "part", value_name = "FILE", required = true)]
    parts: Vec<PathBuf>,
    /// Expected sha256 of the parts joined; without it whatever is there is taken and its digest shown.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Passages encoded again and compared with their vectors.
    #[arg(long, default_value_t = 64, value_name = "N")]
    verify: usize,
    #[command(flatten)]
    corpus: CorpusArgs,
    /// The encoder that made it: a folder with config.json, model.safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    encoder: PathBuf,
    #[command(flatten)]
    encoding: EncoderArgs,
    /// Leaves BM25 out.
    #[arg(long)]
    no_lexical: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// `s3 index build`.
pub fn build(args: &BuildArgs) -> Result<ExitCode, Problem> {
    let kind = match args.kind {
        Kind::Flat => DenseKind::Flat,
        Kind::ScalarQuantized => DenseKind::ScalarQuantized,
        Kind::OneBit => DenseKind::OneBit,
        Kind::IvfFlat => DenseKind::IvfFlat,
        Kind::IvfPq => DenseKind::IvfPq,
        Kind::Hnsw => DenseKind::Hnsw,
        Kind::Factory => DenseKind::Factory,
    };
    let structure = args.structure.of(args.kind)?;
    let index = DenseIndexConfig { kind, recall_target: args.recall_target, structure };
    let dense = args.encoder.as_ref().map(|encoder| dense(encoder, &args.encoding, index, None)).transpose()?;
    let lexical = (!args.no_lexical).then_some(LexicalConfig { k1: args.k1, b: args.b });
    make("build", &args.corpus, lexical, dense, &args.place)
}

/// `s3 index import`.
pub fn import(args: &ImportArgs) -> Result<ExitCode, Problem> {
    let mut parts = args.parts.iter().map(|part| absolute(part)).collect::<Result<Vec<_>, _>>()?;
    let sha256 = match &args.sha256 {
        Some(sha256) => sha256.clone(),
        None => joined_digest(&parts)?,
    };
    // clap asks for one at least
    let path = parts.remove(0);
    let vectors = VectorsConfig { path, parts, sha256, verify: args.verify };
    let index = DenseIndexConfig { kind: DenseKind::Imported, ..DenseIndexConfig::default() };
    let dense = dense(&args.encoder, &args.encoding, index, Some(vectors))?;
    let lexical = (!args.no_lexical).then(LexicalConfig::default);
    make("import", &args.corpus, lexical, Some(dense), &args.place)
}

/// sha256 of files joined.
fn joined_digest(parts: &[PathBuf]) -> Result<String, Problem> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for part in parts {
        let mut file = std::fs::File::open(part).map_err(|error| Problem::io("open", part, &error))?;
        loop {
            let read = file.read(&mut buffer).map_err(|error| Problem::io("read", part, &error))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
    }
    let digest = hex::encode(hasher.finalize());
    eprintln!("  the parts joined have sha256 {digest}");
    Ok(digest)
}

fn dense(
    encoder: &Path,
    args: &EncoderArgs,
    index: DenseIndexConfig,
    vectors: Option<VectorsConfig>,
) -> Result<DenseConfig, Problem> {
    Ok(DenseConfig {
        encoder: absolute(encoder)?,
        encoder_sha256: None,
        pooling: match args.pooling {
            Pool::Mean => Pooling::Mean,
            Pool::Cls => Pooling::Cls,
        },
        query_prefix: args.query_prefix.clone(),
        passage_prefix: args.passage_prefix.clone(),
        max_tokens: args.max_tokens,
        index,
        vectors,
        device: DeviceKind::default(),
    })
}

fn make(
    what: &str,
    corpus: &CorpusArgs,
    lexical: Option<LexicalConfig>,
    dense: Option<DenseConfig>,
    place: &PlaceArgs,
) -> Result<ExitCode, Problem> {
    let output = absolute(&place.output)?;
    let state_dir = match &place.state {
        Some(state) => absolute(state)?,
        None => output.join(".work"),
    };
    std::fs::create_dir_all(&state_dir).map_err(|error| Problem::io("create", &state_dir, &error))?;
    let call = Call::new()?;
    let result = call.path("result.json");
    let runtime = Runtime {
        name: what.to_owned(),
        state_dir,
        progress: Some(call.progress()),
        result: Some(result.clone()),
        admin: None,
        threads: place.threads,
        termination_message: None,
        attempt: None,
        operator: None,
        team: None,
    };
    let audit = corpus
        .audits
        .iter()
        .map(|audit| match audit.split_once('=') {
            Some((name, path)) if !name.is_empty() => Ok(DatasetConfig {
                name: name.to_owned(),
                path: absolute(Path::new(path))?,
                ..DatasetConfig::default()
            }),
            _ => Err(Problem::input(format!("--audit {audit}: write NAME=FILE"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let config = IndexBuildConfig {
        runtime,
        corpus: CorpusConfig {
            path: absolute(&corpus.corpus)?,
            sha256: corpus.corpus_sha256.clone(),
            limit: corpus.limit,
        },
        lexical,
        dense,
        audit,
        output: output.clone(),
    };
    let config = call.save("build.yaml", &config)?;
    call.run(what, &[OsStr::new("build"), OsStr::new("--config"), config.as_os_str()])?;
    let text = std::fs::read_to_string(&result).map_err(|error| Problem::io("read", &result, &error))?;
    if place.json {
        writeln!(Out, "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome: Outcome = serde_json::from_str(&text).map_err(Problem::internal)?;
    let summary = &outcome.summary;
    let number = |key: &str| summary[key].as_u64().unwrap_or_default();
    writeln!(Out, "{} passages, {} in {}", thousands(number("passages")), bytes(number("bytes")), output.display())?;
    if let Some(recall) = summary["recall"].as_f64() {
        let scored = match summary["oversample"].as_u64() {
            Some(oversample) => {
                let effort = summary["effort"].as_u64().map(|effort| format!(", FAISS' effort {effort}"));
                let effort = effort.unwrap_or_default();
                format!("recall at 10 {recall:.4}, {oversample} candidates scored per passage{effort}")
            }
            None => "searched exactly".to_owned(),
        };
        writeln!(Out, "{} dimensions, {scored}", number("dimensions"))?;
    }
    for (name, found) in summary["answerable"].as_object().into_iter().flatten() {
        let share = 100.0 * found["fraction"].as_f64().unwrap_or_default();
        writeln!(Out, "{share:.1} % of {} questions of {name} can be answered", found["questions"])?;
    }
    writeln!(Out, "digest {}", outcome.digest)?;
    Ok(ExitCode::SUCCESS)
}
