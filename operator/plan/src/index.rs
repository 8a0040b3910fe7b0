//! `RetrieverIndex` → a build and a retriever, or a web search.

use crate::component::{asked, in_work, runtime};
use crate::gateway::{is_loopback, peer};
use crate::names::{index_name, retriever_name};
use crate::sources::{IntoConfig, Reader};
use crate::{
    ADMIN_PORT, Component, ComponentKind, Endpoint, GRPC_PORT, HTTP_PORT, PlanError, Readiness, Role, Sourced, Symbol,
    Template, WorkerConfig,
};
use s3_config::{
    ClientTls, CorpusConfig, DenseConfig, DenseIndexConfig, DenseKind, Endpoint as Peer, IndexBuildConfig,
    LexicalConfig, RerankerConfig, RetrievalMethod, RetrieverServeConfig, Runtime, ServerTls, Structure, TeamConfig,
    VectorsConfig, WebLimits, WebSearchConfig,
};
use s3_crds::{
    Corpus, Dense, Encoder, FusionKind, IndexImport, IndexServing, Lexical, Reranker, Resources, RetrieverIndex,
    SecretKeyRef, VectorIndex, VectorIndexKind, WebSearch,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Milliseconds that a request to a web search may take.
const WEB_DEADLINE: u64 = 300_000;
/// Passages of an imported index that are encoded again and compared.
const VERIFY: usize = 64;

/// What other resources take from an index.
pub(crate) fn corpus(
    index: &Sourced<RetrieverIndex>,
    resource: &str,
) -> Result<(PathBuf, Vec<crate::Input>, BTreeSet<String>), PlanError> {
    let made = made_of(index, resource)?;
    let mut reader = Reader::new(resource, index.folder.as_deref());
    let path = reader.file(made.corpus, &format!("{}.corpus.uri", made.field))?;
    Ok((path, reader.inputs, reader.volumes))
}

/// How whoever searches with an index reaches it.
pub(crate) fn searched(name: &str, index: &Sourced<RetrieverIndex>) -> Peer {
    let tls = index.object.spec.serving.tls.as_ref();
    let tls = tls.map(|tls| {
        let secret = &tls.client_secret_ref.as_ref().unwrap_or(&tls.secret_ref).name;
        ClientTls {
            certificate: tls_file(secret, "tls.crt"),
            key: tls_file(secret, "tls.key"),
            ca: tls_file(secret, "ca.crt"),
            server_name: tls.server_name.clone(),
        }
    });
    Peer { tls, ..peer(&Symbol::address(&retriever_name(name), GRPC_PORT)) }
}

fn tls_file(secret: &str, key: &str) -> PathBuf {
    Symbol::Secret { name: secret.to_owned(), key: key.to_owned() }.to_string().into()
}

/// What the servers of an index show, and whose certificates they take.
fn server_tls(serving: &IndexServing) -> Option<ServerTls> {
    let secret = &serving.tls.as_ref()?.secret_ref.name;
    Some(ServerTls {
        certificate: tls_file(secret, "tls.crt"),
        key: tls_file(secret, "tls.key"),
        client_ca: tls_file(secret, "ca.crt"),
    })
}

/// What an index is made of, built or imported.
struct Made<'a> {
    /// Where it stands in the resource.
    field: &'static str,
    corpus: &'a Corpus,
    lexical: Option<&'a Lexical>,
    vectors: MadeVectors<'a>,
    resources: Resources,
    /// Pods or processes that embed.
    workers: u32,
}

enum MadeVectors<'a> {
    None,
    Built(&'a Dense),
    Imported(&'a IndexImport),
}

fn made_of<'a>(index: &'a Sourced<RetrieverIndex>, resource: &str) -> Result<Made<'a>, PlanError> {
    let source = &index.object.spec.source;
    match (&source.build, &source.import, &source.web_search) {
        (Some(build), None, None) => Ok(Made {
            field: "source.build",
            corpus: &build.corpus,
            lexical: build.lexical.as_ref(),
            vectors: build.dense.as_ref().map_or(MadeVectors::None, MadeVectors::Built),
            resources: build.resources.clone(),
            workers: build.workers,
        }),
        (None, Some(import), None) => Ok(Made {
            field: "source.import",
            corpus: &import.corpus,
            lexical: import.lexical.as_ref(),
            vectors: MadeVectors::Imported(import),
            resources: Resources::default(),
            workers: 1,
        }),
        (None, None, Some(_)) => {
            let reason = "a web search has no passages to read beforehand; what asks for them (unanswerable or eligible \
                          questions, control retrievers) needs an index that is built or imported";
            Err(PlanError::field(resource, "source.webSearch", reason))
        }
        _ => Err(PlanError::field(resource, "source", "set exactly one of build, import and webSearch")),
    }
}

/// The build and the retriever of one index, or its web search.
pub(crate) fn components(name: &str, index: &Sourced<RetrieverIndex>) -> Result<Vec<Component>, PlanError> {
    let resource = format!("RetrieverIndex/{name}");
    if let (None, None, Some(web)) =
        (&index.object.spec.source.build, &index.object.spec.source.import, &index.object.spec.source.web_search)
    {
        return Ok(vec![web_search(name, &resource, &index.object.spec.serving, web)?]);
    }
    let made = made_of(index, &resource)?;
    let spec = &index.object.spec;
    let (build_name, serve_name) = (index_name(name), retriever_name(name));
    let owners = BTreeSet::from([resource.clone()]);
    let mut reader = Reader::new(&resource, index.folder.as_deref());

    let lexical = made.lexical.map(|lexical| LexicalConfig { k1: lexical.k1, b: lexical.b });
    let dense = match made.vectors {
        MadeVectors::None => None,
        MadeVectors::Built(dense) => Some(dense_config(dense, &mut reader)?),
        MadeVectors::Imported(import) => Some(imported(import, &mut reader)?),
    };
    let output = in_work(&build_name, "index");
    // Who they are is known once they start.
    let team = (made.workers > 1).then(TeamConfig::default);
    let config = IndexBuildConfig {
        runtime: Runtime { team, ..runtime(&build_name) },
        corpus: CorpusConfig {
            path: reader.file(made.corpus, &format!("{}.corpus.uri", made.field))?,
            sha256: made.corpus.sha256.clone(),
            limit: made.corpus.limit,
        },
        lexical: lexical.clone(),
        dense: dense.clone(),
        audit: reader.datasets(&spec.audit.datasets, "audit.datasets")?,
        output: output.clone(),
    };
    let listens = [("/runtime/admin", ADMIN_PORT)];
    let build_component = Component {
        name: build_name.clone(),
        kind: ComponentKind::IndexBuild,
        role: Role::Job,
        owners: owners.clone(),
        binary: "s3-retriever".into(),
        args: vec!["build".into()],
        needs: BTreeSet::new(),
        ports: BTreeSet::from([ADMIN_PORT.to_owned()]),
        endpoints: Vec::new(),
        volumes: reader.volumes.clone(),
        secrets: BTreeSet::new(),
        inputs: reader.inputs,
        resources: asked(&made.resources, 0, 256 << 20),
        readiness: Readiness::Outcome,
        config: Template::new(&WorkerConfig::IndexBuild(Box::new(config)), &listens)?,
    };

    let serving = &spec.serving;
    let mut served = Reader::new(&resource, index.folder.as_deref());
    let reranker = spec.reranker.as_ref().map(|reranker| rerank(reranker, &mut served)).transpose()?;
    let mut volumes = reader.volumes;
    volumes.extend(served.volumes);
    let stand_in = SocketAddr::from(([0, 0, 0, 0], 0));
    let config = RetrieverServeConfig {
        runtime: runtime(&serve_name),
        index: output,
        encoder: dense.as_ref().map(|dense| dense.encoder.clone()),
        device: serving.device.into_config(),
        grpc: stand_in,
        http: Some(stand_in),
        method: method(spec, lexical.is_some(), dense.is_some()),
        fusion: (&spec.fusion).into_config(),
        top_k: serving.top_k,
        top_k_limit: serving.top_k_limit,
        queries_limit: serving.queries_limit as usize,
        cache_entries: serving.cache_entries as usize,
        requests_limit: s3_config::default_requests_limit(),
        watch_millis: s3_config::default_watch_millis(),
        deadline_millis: s3_config::default_deadline_millis(),
        tokens: None,
        tls: server_tls(serving),
        reranker,
    };
    let listens = [("/grpc", GRPC_PORT), ("/http", HTTP_PORT), ("/runtime/admin", ADMIN_PORT)];
    let serve_component = Component {
        name: serve_name,
        kind: ComponentKind::Retriever,
        role: Role::Service,
        owners,
        binary: "s3-retriever".into(),
        args: vec!["serve".into()],
        needs: BTreeSet::from([build_name]),
        ports: listens.iter().map(|(_, port)| (*port).to_owned()).collect(),
        endpoints: Vec::new(),
        volumes,
        secrets: BTreeSet::new(),
        inputs: served.inputs,
        resources: asked(&serving.resources, 0, 0),
        readiness: Readiness::Reported,
        config: Template::new(&WorkerConfig::Retriever(Box::new(config)), &listens)?,
    };
    Ok(vec![build_component, serve_component])
}

/// What asks a web search in the place of a retriever, under the same name.
fn web_search(name: &str, resource: &str, serving: &IndexServing, web: &WebSearch) -> Result<Component, PlanError> {
    let own = retriever_name(name);
    let stand_in = SocketAddr::from(([0, 0, 0, 0], 0));
    let secret = |secret: &SecretKeyRef| Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() };
    // An address that says itself that it is of this machine is meant so.
    let allow_addresses =
        if is_loopback(&web.endpoint) { vec!["127.0.0.0/8".into(), "::1".into()] } else { Vec::new() };
    let config = WebSearchConfig {
        runtime: runtime(&own),
        grpc: stand_in,
        http: Some(stand_in),
        endpoint: web.endpoint.clone(),
        engine: web.engine.clone(),
        parameters: web.parameters.clone(),
        api_key_file: web.api_key_secret_ref.as_ref().map(|key| secret(key).to_string().into()),
        limits: WebLimits {
            concurrency: web.limits.concurrency as usize,
            deadline_ms: web.limits.timeout.millis(),
            attempts: web.limits.attempts,
            requests_per_minute: web.limits.requests_per_minute,
            queue: web.limits.queue as usize,
            ..WebLimits::default()
        },
        results: Some(in_work(&own, "results.redb")),
        query_characters: web.query_characters as usize,
        top_k: serving.top_k,
        top_k_limit: serving.top_k_limit,
        queries_limit: serving.queries_limit as usize,
        requests_limit: s3_config::default_requests_limit(),
        // Retries with their pauses take longer than a search of one's own.
        deadline_millis: WEB_DEADLINE,
        tokens: None,
        tls: server_tls(serving),
        allow_addresses,
    };
    let listens = [("/grpc", GRPC_PORT), ("/http", HTTP_PORT), ("/runtime/admin", ADMIN_PORT)];
    let endpoint = Endpoint { url: web.endpoint.clone(), field: format!("{resource} source.webSearch.endpoint") };
    Ok(Component {
        name: own,
        kind: ComponentKind::WebSearch,
        role: Role::Service,
        owners: BTreeSet::from([resource.to_owned()]),
        binary: "s3-retriever".into(),
        args: vec!["web".into()],
        needs: BTreeSet::new(),
        ports: listens.iter().map(|(_, port)| (*port).to_owned()).collect(),
        endpoints: vec![endpoint],
        volumes: BTreeSet::new(),
        secrets: BTreeSet::new(),
        inputs: Vec::new(),
        resources: asked(&serving.resources, 0, 64 << 20),
        readiness: Readiness::Reported,
        config: Template::new(&WorkerConfig::WebSearch(Box::new(config)), &listens)?,
    })
}

fn dense_index(index: &VectorIndex) -> DenseIndexConfig {
    let kind = match index.kind {
        VectorIndexKind::Flat => DenseKind::Flat,
        VectorIndexKind::ScalarQuantized => DenseKind::ScalarQuantized,
        VectorIndexKind::OneBit => DenseKind::OneBit,
        VectorIndexKind::IvfFlat => DenseKind::IvfFlat,
        VectorIndexKind::IvfPq => DenseKind::IvfPq,
        VectorIndexKind::Hnsw => DenseKind::Hnsw,
        VectorIndexKind::Factory => DenseKind::Factory,
    };
    let structure = Structure {
        lists: index.lists,
        probes: index.probes,
        code_bytes: index.code_bytes,
        neighbors: index.neighbors,
        ef_construction: index.ef_construction,
        ef_search: index.ef_search,
        factory: index.factory.clone(),
    };
    DenseIndexConfig { kind, recall_target: index.recall_target, structure }
}

fn dense_config(dense: &Dense, reader: &mut Reader<'_>) -> Result<DenseConfig, PlanError> {
    let encoder = &dense.encoder;
    let vectors = match &dense.vectors {
        Some(vectors) => Some(VectorsConfig {
            path: reader.file(vectors, "source.build.dense.vectors.uri")?,
            parts: Vec::new(),
            sha256: vectors.sha256.clone(),
            verify: vectors.verify as usize,
        }),
        None => None,
    };
    let index = dense_index(&dense.index);
    encoded(encoder, "source.build.dense.encoder.model", index, vectors, reader)
}

/// A FAISS index of any kind: one of kind Flat is searched exactly, another by itself.
fn imported(import: &IndexImport, reader: &mut Reader<'_>) -> Result<DenseConfig, PlanError> {
    let mut parts = Vec::new();
    for (at, part) in import.parts.iter().enumerate() {
        parts.push(reader.data(part, &format!("source.import.parts[{at}].uri"))?);
    }
    let mut parts = parts.into_iter();
    // the schema demands one
    let path = parts.next().unwrap_or_default();
    let vectors = VectorsConfig { path, parts: parts.collect(), sha256: import.sha256.clone(), verify: VERIFY };
    let index = DenseIndexConfig { kind: DenseKind::Imported, ..DenseIndexConfig::default() };
    encoded(&import.encoder, "source.import.encoder.model", index, Some(vectors), reader)
}

fn encoded(
    encoder: &Encoder,
    field: &str,
    index: DenseIndexConfig,
    vectors: Option<VectorsConfig>,
    reader: &mut Reader<'_>,
) -> Result<DenseConfig, PlanError> {
    Ok(DenseConfig {
        encoder: reader.encoder(&encoder.model, field)?,
        encoder_sha256: encoder.model.sha256.clone(),
        pooling: encoder.pooling.into_config(),
        query_prefix: encoder.query_prefix.clone(),
        passage_prefix: encoder.passage_prefix.clone(),
        max_tokens: encoder.max_tokens as usize,
        index,
        vectors,
        device: encoder.device.into_config(),
    })
}

fn rerank(reranker: &Reranker, reader: &mut Reader<'_>) -> Result<RerankerConfig, PlanError> {
    Ok(RerankerConfig {
        model: reader.encoder(&reranker.model, "reranker.model")?,
        sha256: reranker.model.sha256.clone(),
        depth: reranker.depth as usize,
        max_tokens: reranker.max_tokens as usize,
        device: reranker.device.into_config(),
    })
}

/// What `Default` means for this index: hybrid where both legs are there and fused, else the leg it has.
fn method(spec: &s3_crds::RetrieverIndexSpec, lexical: bool, dense: bool) -> RetrievalMethod {
    let asked = spec.serving.method.into_config();
    match (asked, lexical, dense, spec.fusion.kind) {
        (RetrievalMethod::Default, true, true, FusionKind::ReciprocalRank) => RetrievalMethod::Hybrid,
        (RetrievalMethod::Default, _, true, _) => RetrievalMethod::Dense,
        (RetrievalMethod::Default, true, false, _) => RetrievalMethod::Lexical,
        (asked, ..) => asked,
    }
}
