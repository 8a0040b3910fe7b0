//! The built-in provider: a tiny random model for behaviour, the quickstart's model for sense.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use candle_core::{DType, Device};
use s3_generator_gateway::{
    Ask, BuiltIn, Call, Completion, Document, FailureKind, Finish, Gateway, Message, Order, Provider, Role, Sampling,
    Templates, render,
};
use s3_model::{Decoder, DecoderConfig, TokenizerFile};
use std::path::{Path, PathBuf};

const VOCAB: usize = 260;

/// A byte tokenizer with a chat template in a folder.
fn tokenizer(folder: &Path) -> TokenizerFile {
    // the 256 characters that byte-level BPE writes bytes as
    let printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let mut spare = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable.contains(&byte) {
            byte
        } else {
            spare += 1;
            spare - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let special = |id: u32, text: &str| serde_json::json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let settings = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
    TokenizerFile::from_folder(folder).unwrap()
}

fn tiny(batch: usize) -> BuiltIn {
    let folder = tempfile::tempdir().unwrap();
    let decoder = Decoder::random(DecoderConfig::tiny(VOCAB, 32, 2), 7, &Device::Cpu, DType::F32).unwrap();
    BuiltIn::start("tiny", decoder, tokenizer(folder.path()), "d".repeat(64), batch, 200).unwrap()
}

fn call(text: &str, max_tokens: u32) -> Call {
    Call::chat(vec![Message::new(Role::User, text)], Sampling::greedy(Some(max_tokens), &[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_repeats_and_bad_calls_fail_alone() {
    let provider = tiny(4);
    let calls: Vec<Call> = (0..11).map(|i| call(&"word ".repeat(i % 5), 6)).collect();
    let mut mixed = calls.clone();
    mixed.insert(3, call(&"long ".repeat(60), 6));
    let mut warm = call("warm", 6);
    warm.sampling.temperature = 0.5;
    mixed.insert(7, warm);
    mixed.push(Call { messages: vec![Message::new(Role::Assistant, "x")], ..call("", 6) });

    let clean = provider.complete(calls, Order::default()).await;
    let mut outcomes = provider.complete(mixed, Order::default()).await;
    for (at, part) in [(13, "a user's message"), (7, "greedily"), (3, "contextTokens 200")] {
        let failure = outcomes.remove(at).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Rejected);
        assert!(failure.message.contains(part), "{failure}");
    }
    assert_eq!(outcomes, clean);
    // equal prompts far apart in the batch have equal answers
    assert_eq!(clean[1], clean[6]);
    for outcome in &clean {
        let Completion { completion_tokens, finish, .. } = outcome.as_ref().unwrap();
        assert!(*completion_tokens == 6 || *finish == Finish::Stop);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_callers_compute_once_and_a_restart_remembers() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("answers.redb");
    let gateway = |batch| {
        let providers: Vec<Box<dyn Provider>> = vec![Box::new(tiny(batch))];
        let cache = s3_generator_gateway::AnswerCache::open(&cache).unwrap();
        Gateway::new(providers, Templates::built_in().unwrap(), cache)
    };
    let first = gateway(4);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let gateway = first.clone();
            tokio::spawn(async move {
                let lane = gateway.lane("tiny").unwrap().clone();
                gateway.complete(&lane, vec![call("a", 5), call("b", 5), call("a", 5)], &Ask::by("test")).await.unwrap()
            })
        })
        .collect();
    let mut fresh = 0;
    let mut all = Vec::new();
    for task in tasks {
        let answers: Vec<_> = task.await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(answers[0], answers[2]);
        fresh += usize::from(!answers[0].cached);
        all.push([answers[0].completion.clone(), answers[1].completion.clone()]);
    }
    assert_eq!(fresh, 1, "only the first caller computes");
    assert!(all.iter().all(|answers| *answers == all[0]));
    drop(first);

    let second = gateway(1);
    let lane = second.lane("").unwrap().clone();
    let answers = second.complete(&lane, vec![call("b", 5), call("a", 5)], &Ask::by("test")).await.unwrap();
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| answer.cached));
    assert_eq!([&answers[1].completion, &answers[0].completion], [&all[0][0], &all[0][1]]);
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = Decoder::random(DecoderConfig::tiny(VOCAB, 32, 1), 7, &Device::Cpu, DType::F32).unwrap();
    for (batch, context) in [(0, 100), (1, 1), (1, 4096)] {
        let error = BuiltIn::start("tiny", decoder.clone(), tokenizer(folder.path()), String::new(), batch, context);
        assert!(error.err().unwrap().to_string().contains("contextTokens"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_is_the_whole_one_in_pieces() {
    let provider = tiny(4);
    for (text, stops) in [("one", vec![]), ("two", vec!["a".to_owned(), "\u{FFFD}".to_owned()]), ("three", vec![])] {
        let mut wanted = call(text, 24);
        wanted.sampling.stop = stops;
        let whole = provider.complete(vec![wanted.clone()], Order::default()).await.remove(0).unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
        let (streamed, pieces) = tokio::join!(provider.stream(wanted, Order::default(), sender), async {
            let mut pieces = Vec::new();
            while let Some(piece) = receiver.recv().await {
                pieces.push(piece);
            }
            pieces
        });
        assert_eq!(streamed.unwrap(), whole);
        assert_eq!(pieces.concat(), whole.text, "{text}");
    }
    // nobody listens any more: decoding ends long before its limit
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    drop(receiver);
    let ended = provider.stream(call("four", 150), Order::default(), sender).await.unwrap();
    assert!(ended.completion_tokens < 20, "{}", ended.completion_tokens);
    // a plain text is continued as it stands
    let plain = Call { text: Some("Once".into()), ..Call::chat(Vec::new(), Sampling::greedy(Some(4), &[])) };
    let made = provider.complete(vec![plain], Order::default()).await.remove(0).unwrap();
    assert_eq!(made.prompt_tokens, 4);
}

/// The model of the quickstart; fetched, never committed.
fn model() -> PathBuf {
    let data = std::env::var_os("S3_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.s3/data"), PathBuf::from);
    let path = data.join("models/smollm2-135m-instruct/model.gguf");
    assert!(path.exists(), "{} is missing: run `make data`", path.display());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quickstart_model_answers_from_its_passages() {
    let spec = s3_config::ModelSpec::at(model(), s3_config::DeviceKind::Cpu, s3_config::DTypeKind::F32);
    let provider = BuiltIn::load("smollm2", &spec, 8, 1024).unwrap();
    let templates = Templates::built_in().unwrap();
    let template = templates.get("short-answer").unwrap();
    let ask = |question: &str, passages: &[Document<'_>]| {
        let messages = render(template, question, passages, 64);
        Call::from_rendered(messages, Sampling::greedy(Some(16), template.stop()))
    };
    let passage =
        Document { title: "Zorbland", text: "The capital of Zorbland is Quilthaven, a city of 40,000 people." };
    let other = Document { title: "Tea", text: "Tea is a drink made from the leaves of Camellia sinensis." };
    let started = std::time::Instant::now();
    let outcomes = provider
        .complete(
            vec![
                ask("What is the capital of Zorbland?", &[other, passage]),
                ask("What is the capital of France?", &[]),
                ask("From which plant are tea leaves taken?", &[other]),
            ],
            Order::default(),
        )
        .await;
    let texts: Vec<&str> = outcomes.iter().map(|outcome| outcome.as_ref().unwrap().text.trim()).collect();
    println!("{texts:?} in {:?}", started.elapsed());
    assert!(texts[0].contains("Quilthaven"), "{texts:?}");
    assert!(texts[1].contains("Paris"), "{texts:?}");
    assert!(texts[2].contains("Camellia"), "{texts:?}");
    assert!(texts.iter().all(|text| !text.contains('\n')), "{texts:?}");
}
