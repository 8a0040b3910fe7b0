//! Episodes over a tiny random model: the tokens that are played are the tokens that are trained on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/tiny.rs"]
mod tiny;

use s3_config::{ModelSpec, RetrievalMethod, SearchConfig};
use s3_model::{Decoder, TrainSequence};
use s3_rollout::record::EpisodeRecord;
use s3_rollout::{
    EpisodeRequest, Job, ModelCodec, Pace, Player, Retrieve, RolloutError, Sampling, Seat, Stage, Stream, Writer,
};
use s3_search::{Episode, Passage, Question, StopReason, Trajectory};
use s3_telemetry::Shutdown;

struct Fake {
    down: bool,
}

impl Retrieve for Fake {
    fn retrieve(&self, queries: &[String], top_k: u32, _: RetrievalMethod) -> Result<Vec<Vec<Passage>>, RolloutError> {
        if self.down {
            let status = "Unavailable".to_owned();
            return Err(s3_proto::CallError::Unavailable {
                service: "retriever",
                address: "x".into(),
                attempts: 1,
                status,
            }
            .into());
        }
        Ok(queries.iter().map(|query| passages(query, top_k)).collect())
    }
}

fn passages(about: &str, count: u32) -> Vec<Passage> {
    (0..count)
        .map(|i| Passage { id: format!("{about}-{i}"), title: format!("T{i}"), text: format!("text {i} of {about}") })
        .collect()
}

fn requests() -> Vec<EpisodeRequest> {
    (0..6)
        .flat_map(|q| {
            let question = Question {
                id: format!("q{q}"),
                dataset: "d".into(),
                question: format!("what is {q}{}", "?".repeat(q)),
                answers: vec![],
            };
            (0..4).map(move |sample| EpisodeRequest {
                question: question.clone(),
                sample,
                initial: passages("start", 3),
            })
        })
        .collect()
}

struct Setup {
    decoder: Decoder,
    codec: ModelCodec,
    search: SearchConfig,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    let spec: ModelSpec = serde_json::from_value(serde_json::json!({"path": dir.path(), "device": "Cpu"})).unwrap();
    let (mut decoder, tokenizer) = Decoder::load(&spec).unwrap();
    decoder.attach_lora(&s3_config::LoraConfig::default(), 1).unwrap();
    let search = SearchConfig {
        max_searches: 2,
        top_k: 3,
        turn_tokens: 14,
        context_tokens: 950,
        observation_tokens: 300,
        ..SearchConfig::default()
    };
    Setup { decoder, codec: ModelCodec::new(tokenizer), search }
}

fn play(
    setup: &Setup,
    down: bool,
    temperature: f64,
    requests: &[EpisodeRequest],
) -> Result<Vec<Trajectory>, RolloutError> {
    let player = Player {
        decoder: &setup.decoder,
        codec: &setup.codec,
        retriever: &Fake { down },
        search: &setup.search,
        sampling: Sampling { temperature, top_p: 1.0, seed: 3, step: 1 },
        shutdown: &Shutdown::default(),
    };
    player.play(requests)
}

#[test]
fn played_logprobs_are_the_training_pass_own() {
    let setup = setup();
    let requests = requests();
    let played = play(&setup, false, 1.0, &requests).unwrap();
    assert_eq!(played, play(&setup, false, 1.0, &requests).unwrap(), "equal inputs give equal bytes");
    assert!(played.iter().map(|t| t.searches).sum::<u32>() > 3, "some episodes search");
    assert!(played.iter().any(|t| t.turns.len() > 1));
    let sequences: Vec<TrainSequence> = requests
        .iter()
        .zip(&played)
        .map(|(request, trajectory)| {
            let record = EpisodeRecord::new(&request.question, trajectory);
            assert_eq!(record.trajectory(), *trajectory);
            TrainSequence { positions: record.action_positions(), tokens: record.tokens }
        })
        .collect();
    let scored = setup.decoder.score(&sequences, 1.0).unwrap().logprob;
    let old: Vec<f32> = requests
        .iter()
        .zip(&played)
        .flat_map(|(request, trajectory)| EpisodeRecord::new(&request.question, trajectory).logprobs)
        .collect();
    assert_eq!(scored.len(), old.len());
    let worst = scored.iter().zip(&old).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "{worst}");
}

#[test]
fn an_episode_does_not_depend_on_its_batch() {
    let setup = setup();
    let requests = requests();
    for temperature in [0.0, 0.8] {
        let together = play(&setup, false, temperature, &requests).unwrap();
        let reversed: Vec<EpisodeRequest> = requests.iter().rev().cloned().collect();
        let backwards: Vec<Trajectory> =
            play(&setup, false, temperature, &reversed).unwrap().into_iter().rev().collect();
        for (at, (a, b)) in together.iter().zip(&backwards).enumerate() {
            let alone = play(&setup, false, temperature, &requests[at..=at]).unwrap().remove(0);
            for other in [b, &alone] {
                assert_eq!(a.tokens, other.tokens);
                assert!(a.logprobs.iter().zip(&other.logprobs).all(|(x, y)| (x - y).abs() < 1e-5));
            }
        }
        let same = together.chunks(4).all(|group| group.iter().all(|t| t.tokens == group[0].tokens));
        assert_eq!(same, temperature == 0.0, "greedy samples agree, sampled ones differ");
    }
}

#[test]
fn a_dead_retriever_masks_only_those_that_search() {
    let setup = setup();
    let requests = requests();
    let played = play(&setup, true, 1.0, &requests).unwrap();
    let failed = played.iter().filter(|t| t.failure().is_some()).count();
    assert!(failed > 0 && failed < played.len(), "{failed}");
    for trajectory in &played {
        assert_eq!(trajectory.searches, 0);
        assert_ne!(trajectory.stop, StopReason::Running);
    }
    let searching: Vec<EpisodeRequest> = requests
        .iter()
        .zip(&played)
        .filter_map(|(request, trajectory)| trajectory.failure().map(|_| request.clone()))
        .collect();
    assert!(matches!(play(&setup, true, 1.0, &searching), Err(RolloutError::AllFailed { outage: true, .. })));
}

/// Takes its time, another one for every call.
struct Slow(std::sync::atomic::AtomicU64);

impl Retrieve for Slow {
    fn retrieve(&self, queries: &[String], top_k: u32, _: RetrievalMethod) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let call = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_millis(call * 7 % 11));
        Ok(queries.iter().map(|query| passages(query, top_k)).collect())
    }
}

/// Groups of four; what each asks when it ends is answered later.
struct Kept<'s> {
    setup: &'s Setup,
    requests: Vec<EpisodeRequest>,
    played: Vec<Option<Trajectory>>,
    answered: Vec<usize>,
}

impl<'s> Stage<'s> for Kept<'s> {
    type Play = Episode;
    type Answer = usize;

    fn opening(&mut self, group: usize) -> Option<(Question, String, usize)> {
        let question = &self.requests[4 * group].question;
        Some((question.clone(), "start".into(), 3))
    }
    fn seats(&mut self, group: usize, initial: Vec<Passage>) -> Result<Vec<Seat<Episode>>, RolloutError> {
        self.requests[4 * group..4 * group + 4]
            .iter()
            .map(|EpisodeRequest { question, sample, .. }| {
                let play = Episode::new(question, *sample, initial.clone(), &self.setup.search, &self.setup.codec)?;
                Ok(Seat { play, question: question.clone(), sample: *sample })
            })
            .collect()
    }
    fn ended(&mut self, group: usize, run: Seat<Episode>) -> Result<Option<Job<'s, usize>>, RolloutError> {
        let place = 4 * group + run.sample as usize;
        self.played[place] = Some(run.play.finish());
        Ok(Some(Box::new(move || place)))
    }
    fn answered(&mut self, place: usize) -> Result<(), RolloutError> {
        self.answered.push(place);
        Ok(())
    }
    fn keep(&mut self) -> Result<(), RolloutError> {
        Ok(())
    }
}

#[test]
fn whoever_waits_for_whom_episodes_are_the_same() {
    let setup = setup();
    let requests = requests();
    let lock_step = play(&setup, false, 1.0, &requests).unwrap();
    let mut first: Option<Vec<Trajectory>> = None;
    for (pace, workers, slots) in [
        (Pace::Free, 1, 24),
        (Pace::Free, 1, 3),
        (Pace::Free, 3, 9),
        (Pace::Turns, 1, 7),
        (Pace::Turns, 2, 24),
        (Pace::Together, 1, 24),
        (Pace::Together, 1, 5),
    ] {
        let (played, answered) = (vec![None; requests.len()], Vec::new());
        let kept = std::sync::Mutex::new(Kept { setup: &setup, requests: requests.clone(), played, answered });
        let (retriever, shutdown) = (Slow(0.into()), Shutdown::default());
        let stream = Stream {
            writer: Writer::Decoder(&setup.decoder),
            codec: &setup.codec,
            retriever: &retriever,
            method: RetrievalMethod::default(),
            sampling: Sampling { temperature: 1.0, top_p: 1.0, seed: 3, step: 1 },
            shutdown: &shutdown,
            slots,
            workers,
            calls: (4, 2),
            pace,
        };
        stream.run(6, &kept).unwrap();
        let Kept { played, mut answered, .. } = kept.into_inner().unwrap();
        let played: Vec<Trajectory> = played.into_iter().flatten().collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..requests.len()).collect::<Vec<_>>());
        for (a, b) in lock_step.iter().zip(&played) {
            assert_eq!(a.tokens, b.tokens);
            assert!(a.logprobs.iter().zip(&b.logprobs).all(|(x, y)| (x - y).abs() < 1e-5));
        }
        // and the same to the last bit
        assert_eq!(first.get_or_insert_with(|| played.clone()), &played, "{pace:?}, {workers} workers, {slots} slots");
    }
}

#[test]
fn a_stream_that_is_asked_to_stop_stops() {
    let setup = setup();
    let shutdown = Shutdown::default();
    shutdown.request();
    let (requests, retriever) = (requests(), Slow(0.into()));
    let played = vec![None; requests.len()];
    let kept = std::sync::Mutex::new(Kept { setup: &setup, requests, played, answered: Vec::new() });
    let stream = Stream {
        writer: Writer::Decoder(&setup.decoder),
        codec: &setup.codec,
        retriever: &retriever,
        method: RetrievalMethod::default(),
        sampling: Sampling { temperature: 1.0, top_p: 1.0, seed: 3, step: 1 },
        shutdown: &shutdown,
        slots: 8,
        workers: 2,
        calls: (2, 2),
        pace: Pace::Free,
    };
    assert!(matches!(stream.run(6, &kept), Err(RolloutError::Interrupted)));
}
