//! `s3 index inspect`, `verify`, `search` and `compare`.

use super::absolute;
use super::worker::Call;
use crate::out::Out;
use crate::text::{Problem, bytes, thousands};
use clap::{Args, ValueEnum};
use s3_config::ClientTls;
use s3_proto::v1::{self, SearchRequest};
use s3_proto::{CallError, RetrieverClient};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Characters of a text that a table shows.
const SHOWN: usize = 120;

/// Arguments of `s3 index inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// Folder that an index was published in.
    folder: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `s3 index verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Folder that an index was published in.
    folder: PathBuf,
    /// Its encoder: some passages are encoded again and compared with their vectors.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    Lexical,
    Dense,
    Hybrid,
}

#[derive(Args)]
struct AskArgs {
    /// Passages per query.
    #[arg(long, short = 'k', default_value_t = 10, value_name = "N")]
    top_k: u32,
    /// The ranking; by default the most that the index has.
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Scores every vector, whatever the kind of index.
    #[arg(long)]
    exact: bool,
    /// Only passages whose field (id, title or a name of the metadata) has this value; several of one field are
    /// alternatives.
    #[arg(long = "where", value_name = "FIELD=VALUE")]
    only: Vec<String>,
    /// No passages whose field has this value.
    #[arg(long = "not", value_name = "FIELD=VALUE")]
    not: Vec<String>,
}

/// Arguments of `s3 index search`.
#[derive(Args)]
pub struct SearchArgs {
    /// Folder that an index was published in, or a server's address (http://host:port of its gRPC).
    index: String,
    /// The queries.
    #[arg(required = true)]
    queries: Vec<String>,
    /// The index's encoder; without it only BM25 is searched.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// A cross-encoder that reorders the best.
    #[arg(long, value_name = "DIR")]
    reranker: Option<PathBuf>,
    /// File with the token that a server asks for.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    ask: AskArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What is shown to a server that asks for certificates (PEM files).
#[derive(Args)]
struct TlsArgs {
    /// Certificate to show to a server that asks for one.
    #[arg(long, value_name = "FILE", requires_all = ["key", "ca"])]
    certificate: Option<PathBuf>,
    /// The certificate's private key.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Authority that the server's certificate must come from.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    ca: Option<PathBuf>,
    /// Name that the server's certificate must be for, where it is not the address' own.
    #[arg(long, value_name = "NAME", requires = "certificate")]
    server_name: Option<String>,
}

impl TlsArgs {
    fn config(&self) -> Option<ClientTls> {
        let (certificate, key, ca) = (self.certificate.clone()?, self.key.clone()?, self.ca.clone()?);
        Some(ClientTls { certificate, key, ca, server_name: self.server_name.clone() })
    }
}

/// Arguments of `s3 index compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// Folder of the first index.
    first: PathBuf,
    /// Folder of the second.
    second: PathBuf,
    /// Queries, one a line, or a question file (jsonl).
    #[arg(long, value_name = "FILE")]
    queries: PathBuf,
    /// Only the first this many queries.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    count: usize,
    /// The first index's encoder; without it only BM25 is searched.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// The second's, when it is another.
    #[arg(long, value_name = "DIR")]
    second_encoder: Option<PathBuf>,
    #[command(flatten)]
    ask: AskArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl AskArgs {
    /// (field, values, whether they deny), the values of one field together.
    fn filter(&self) -> Result<Vec<(String, Vec<String>, bool)>, Problem> {
        let mut filter: Vec<(String, Vec<String>, bool)> = Vec::new();
        for (texts, deny) in [(&self.only, false), (&self.not, true)] {
            for text in texts {
                let (field, value) =
                    text.split_once('=').ok_or_else(|| Problem::input(format!("{text}: write FIELD=VALUE")))?;
                match filter.iter_mut().find(|(name, _, denies)| name == field && *denies == deny) {
                    Some((_, values, _)) => values.push(value.to_owned()),
                    None => filter.push((field.to_owned(), vec![value.to_owned()], deny)),
                }
            }
        }
        Ok(filter)
    }

    fn asked(&self, queries: &[String]) -> Result<Value, Problem> {
        Ok(json!({
            "queries": queries, "topK": self.top_k, "method": self.method.map(|method| format!("{method:?}")),
            "exact": self.exact, "filter": self.filter()?,
        }))
    }
}

/// A server's configuration for a folder that nobody serves.
fn server(
    call: &Call,
    folder: &Path,
    encoder: Option<&PathBuf>,
    reranker: Option<&PathBuf>,
    ask: Option<&AskArgs>,
    queries: usize,
) -> Result<Value, Problem> {
    let top_k = ask.map_or(10, |ask| ask.top_k.max(1));
    let mut config = json!({
        "runtime": {"name": "index", "stateDir": call.path("state"), "progress": call.progress()},
        "index": absolute(folder)?, "grpc": "127.0.0.1:0", "topK": top_k, "topKLimit": top_k.max(10),
        "queriesLimit": queries.max(256), "cacheEntries": 0,
    });
    if let Some(encoder) = encoder {
        config["encoder"] = json!(absolute(encoder)?);
    }
    if let Some(reranker) = reranker {
        config["reranker"] = json!({"model": absolute(reranker)?});
    }
    Ok(config)
}

fn answer(text: &str) -> Result<Value, Problem> {
    serde_json::from_str(text).map_err(|error| Problem::internal(format!("s3-retriever's answer: {error}")))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// One version in a few lines.
fn describe(version: &Value) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let mark = if version["current"] == true { "  (current)" } else { "" };
    // Writing into a String cannot fail.
    let _ = writeln!(out, "{}{mark}", version["digest"].as_str().unwrap_or_default());
    if let Some(error) = version["error"].as_str() {
        let _ = writeln!(out, "  unreadable  {error}");
        return out;
    }
    let (identity, facts) = (&version["identity"], &version["facts"]);
    let limit = identity["limit"].as_u64().map_or_else(String::new, |n| format!(", the first {}", thousands(n)));
    let _ =
        writeln!(out, "  passages    {}, {}", thousands(number(&facts["passages"])), bytes(number(&facts["bytes"])));
    let _ = writeln!(out, "  corpus      sha256 {}{limit}", identity["corpusSha256"].as_str().unwrap_or_default());
    if identity["lexical"].is_object() {
        let _ = writeln!(out, "  lexical     BM25, k1 {}, b {}", identity["lexical"]["k1"], identity["lexical"]["b"]);
    }
    let dense = &identity["dense"];
    if dense.is_object() {
        let kind = dense["kind"].as_str().unwrap_or_default();
        let recall = facts["recall"].as_f64().map_or_else(String::new, |recall| format!(", recall at 10 {recall:.4}"));
        let _ = writeln!(out, "  dense       {kind}, {} dimensions{recall}", facts["dimensions"]);
        let _ = writeln!(
            out,
            "  encoder     sha256 {}, {} pooling, prefixes {} and {}, {} tokens",
            dense["encoderSha256"].as_str().unwrap_or_default(),
            dense["pooling"].as_str().unwrap_or_default(),
            dense["queryPrefix"],
            dense["passagePrefix"],
            dense["maxTokens"],
        );
    }
    for audit in facts["answerable"].as_array().into_iter().flatten() {
        let (name, all, can) = (&audit["dataset"], number(&audit["questions"]), number(&audit["answerable"]));
        let name = name.as_str().unwrap_or_default();
        let _ = writeln!(out, "  answerable  {} of {} questions of {name}", thousands(can), thousands(all));
    }
    out
}

/// `s3 index inspect`.
pub fn inspect(args: &InspectArgs) -> Result<ExitCode, Problem> {
    let call = Call::new()?;
    let folder = absolute(&args.folder)?;
    let text = call.run("inspect", &[OsStr::new("inspect"), folder.as_os_str()])?;
    if args.json {
        write!(Out, "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    for version in answer(&text)?["versions"].as_array().into_iter().flatten() {
        write!(Out, "{}", describe(version))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `s3 index verify`.
pub fn verify(args: &VerifyArgs) -> Result<ExitCode, Problem> {
    let call = Call::new()?;
    let config = call.save("serve.yaml", &server(&call, &args.folder, args.encoder.as_ref(), None, None, 1)?)?;
    let arguments = [OsStr::new("verify"), OsStr::new("--config"), config.as_os_str()];
    let text = call.run("verify", &arguments)?;
    if args.json {
        write!(Out, "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let version = answer(&text)?;
    write!(Out, "{}", describe(&version))?;
    let files = version["files"].as_object().map_or(0, serde_json::Map::len);
    let encoder = match (version["encoderChecked"] == true, version["identity"]["dense"].is_object()) {
        (true, _) => "; passages are encoded as their vectors say",
        (false, true) => "; vectors were not compared with the encoder (--encoder)",
        (false, false) => "",
    };
    writeln!(Out, "whole: {files} files have their sha256{encoder}")?;
    Ok(ExitCode::SUCCESS)
}

/// `s3 index search`.
pub fn search(args: &SearchArgs) -> Result<ExitCode, Problem> {
    let found = if args.index.starts_with("http://") || args.index.starts_with("https://") {
        served(args)?
    } else {
        let call = Call::new()?;
        let folder = Path::new(&args.index);
        let (encoder, reranker) = (args.encoder.as_ref(), args.reranker.as_ref());
        let config = server(&call, folder, encoder, reranker, Some(&args.ask), args.queries.len())?;
        let config = call.save("serve.yaml", &config)?;
        let queries = call.save("queries.yaml", &args.ask.asked(&args.queries)?)?;
        let arguments = [
            OsStr::new("search"),
            OsStr::new("--config"),
            config.as_os_str(),
            OsStr::new("--queries"),
            queries.as_os_str(),
        ];
        answer(&call.run("search", &arguments)?)?
    };
    if args.json {
        writeln!(Out, "{found}")?;
        return Ok(ExitCode::SUCCESS);
    }
    for (query, hits) in args.queries.iter().zip(found["results"].as_array().into_iter().flatten()) {
        writeln!(Out, "{query}")?;
        let hits = hits.as_array().map(Vec::as_slice).unwrap_or_default();
        if hits.is_empty() {
            writeln!(Out, "   nothing")?;
        }
        for (place, hit) in hits.iter().enumerate() {
            let text: String =
                hit["text"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            let short: String = text.chars().take(SHOWN).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            let (id, title) = (hit["id"].as_str().unwrap_or_default(), hit["title"].as_str().unwrap_or_default());
            writeln!(
                Out,
                "{:>4}. {:>9.4}  [{id}] {title}: {short}{more}",
                place + 1,
                hit["score"].as_f64().unwrap_or_default()
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The same from a server.
fn served(args: &SearchArgs) -> Result<Value, Problem> {
    if args.encoder.is_some() || args.reranker.is_some() {
        return Err(Problem::input("--encoder and --reranker belong to a folder; a server has its own"));
    }
    let problem =
        |error: CallError| if error.is_outage() { Problem::unavailable(error) } else { Problem::input(error) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
    let _inside = runtime.enter();
    let mut client = RetrieverClient::new(&args.index, Duration::from_secs(60), 3).map_err(problem)?;
    if let Some(tls) = args.tls.config() {
        client = client.with_tls(&tls).map_err(problem)?;
    }
    if let Some(path) = &args.token {
        let token = std::fs::read_to_string(path).map_err(|error| Problem::io("read", path, &error))?;
        client = client.with_token(&token).map_err(problem)?;
    }
    let condition = |(field, any_of, deny)| v1::Condition { field, any_of, deny };
    let request = SearchRequest {
        queries: args.queries.clone(),
        top_k: args.ask.top_k,
        method: match args.ask.method {
            None => v1::Method::Default,
            Some(Method::Lexical) => v1::Method::Lexical,
            Some(Method::Dense) => v1::Method::Dense,
            Some(Method::Hybrid) => v1::Method::Hybrid,
        }
        .into(),
        exact: args.ask.exact,
        filter: args.ask.filter()?.into_iter().map(condition).collect(),
        ..SearchRequest::default()
    };
    let response = runtime.block_on(client.search(request)).map_err(problem)?;
    let hit = |hit: v1::Hit| {
        let passage = hit.passage.unwrap_or_default();
        let (id, title, text) = (passage.id, passage.title, passage.text);
        json!({"id": id, "title": title, "text": text, "metadata": hit.metadata, "score": hit.score})
    };
    let results: Vec<Vec<Value>> =
        response.results.into_iter().map(|hits| hits.hits.into_iter().map(hit).collect()).collect();
    Ok(json!({"index": response.index_digest, "results": results}))
}

/// `s3 index compare`.
pub fn compare(args: &CompareArgs) -> Result<ExitCode, Problem> {
    let queries = read_queries(&args.queries, args.count)?;
    let call = Call::new()?;
    let config = |folder: &Path, encoder| server(&call, folder, encoder, None, Some(&args.ask), queries.len());
    let first = call.save("first.yaml", &config(&args.first, args.encoder.as_ref())?)?;
    let encoder = args.second_encoder.as_ref().or(args.encoder.as_ref());
    let second = call.save("second.yaml", &config(&args.second, encoder)?)?;
    let asked = call.save("queries.yaml", &args.ask.asked(&queries)?)?;
    let arguments = [
        OsStr::new("compare"),
        OsStr::new("--config"),
        first.as_os_str(),
        OsStr::new("--other"),
        second.as_os_str(),
        OsStr::new("--queries"),
        asked.as_os_str(),
    ];
    let text = call.run("compare", &arguments)?;
    if args.json {
        write!(Out, "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let found = answer(&text)?;
    for which in ["first", "second"] {
        let index = &found[which];
        writeln!(
            Out,
            "{which:<6} {}, {} passages",
            index["digest"].as_str().unwrap_or_default(),
            number(&index["passages"])
        )?;
    }
    for line in differences(&found["first"]["identity"], &found["second"]["identity"], "") {
        writeln!(Out, "differs in {line}")?;
    }
    let percent = |key: &str| 100.0 * found[key].as_f64().unwrap_or_default();
    writeln!(
        Out,
        "{} queries, {} passages each: {:.2} % of the passages are the same, the first one for {:.2} % of the queries, \
         the whole ranking for {:.2} %",
        found["queries"],
        args.ask.top_k,
        percent("overlap"),
        percent("sameFirst"),
        percent("sameRanking"),
    )?;
    for worst in found["worst"].as_array().into_iter().flatten() {
        let share = 100.0 * worst["overlap"].as_f64().unwrap_or_default();
        writeln!(Out, "  {share:>5.1} %  {}", worst["query"].as_str().unwrap_or_default())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Members in which two values differ, as `path: a and b`.
fn differences(a: &Value, b: &Value, at: &str) -> Vec<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            let member = |name: &String| {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                differences(&of(a), &of(b), &path)
            };
            names.into_iter().flat_map(member).collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![format!("{at}: {a} and {b}")],
    }
}

/// Queries of a file: lines of text, or of JSON objects with a question.
fn read_queries(path: &Path, count: usize) -> Result<Vec<String>, Problem> {
    let file = std::fs::File::open(path).map_err(|error| Problem::io("open", path, &error))?;
    let mut queries = Vec::new();
    for (line, number) in std::io::BufReader::new(file).lines().zip(1..) {
        let line = line.map_err(|error| Problem::io("read", path, &error))?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if queries.len() == count {
            break;
        }
        if line.starts_with('{') {
            let question: Value = serde_json::from_str(line)
                .map_err(|error| Problem::input(format!("{} line {number}: {error}", path.display())))?;
            let text = question["question"].as_str();
            let missing = || Problem::input(format!("{} line {number}: no question in it", path.display()));
            queries.push(text.ok_or_else(missing)?.to_owned());
        } else {
            queries.push(line.to_owned());
        }
    }
    if queries.is_empty() {
        return Err(Problem::input(format!("{}: no queries in it", path.display())));
    }
    Ok(queries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn differences_are_named_by_their_place() {
        let a = json!({"corpusSha256": "a", "dense": {"kind": "Flat", "maxTokens": 256}, "lexical": null});
        let b = json!({"corpusSha256": "a", "dense": {"kind": "OneBit", "maxTokens": 256}, "lexical": {"k1": 0.9}});
        assert_eq!(differences(&a, &b, ""), ["dense.kind: \"Flat\" and \"OneBit\"", "lexical: null and {\"k1\":0.9}"]);
        assert!(differences(&a, &a, "").is_empty());
    }

    #[test]
    fn conditions_of_one_field_are_alternatives() {
        let args = AskArgs {
            top_k: 3,
            method: None,
            exact: false,
            only: vec!["kind=a".into(), "kind=b=c".into()],
            not: vec!["id=7".into()],
        };
        let expected = vec![
            ("kind".to_owned(), vec!["a".to_owned(), "b=c".to_owned()], false),
            ("id".to_owned(), vec!["7".to_owned()], true),
        ];
        assert_eq!(args.filter().unwrap(), expected);
        assert!(AskArgs { only: vec!["kind".into()], ..args }.filter().is_err());
    }
}
