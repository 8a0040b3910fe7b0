//! The search world's warm starts, made once and kept.

use s3_artifacts::digest_json;
use s3_model::{Decoder, DecoderConfig, load_tensors, save_tensors};
use s3_trainer::world::{Vocabulary, WorldConfig, warm_start};
use std::path::PathBuf;

/// The warm start of a seed and the CPU time it took (0 from the cache).
pub fn cached_warm_start(config: &WorldConfig, seed: u64) -> anyhow::Result<(Decoder, f64)> {
    let key = digest_json(&(
        config.hidden,
        config.layers,
        config.warm_steps,
        config.warm_batch,
        config.warm_quality,
        config.warm_rate,
        seed,
    ))?;
    let path = cache_folder()?.join(format!("search-world-{key}.safetensors"));
    let shape = DecoderConfig::tiny(Vocabulary::PROOF.size(), config.hidden, config.layers);
    if path.exists() {
        let mut decoder = Decoder::random(shape, seed, &candle_core::Device::Cpu, candle_core::DType::F32)?;
        decoder.train_all()?;
        for (name, tensor) in load_tensors(&path)? {
            decoder.set_trained(&name, tensor)?;
        }
        return Ok((decoder, 0.0));
    }
    let started = cpu_seconds();
    let decoder = warm_start(config, seed, |step| {
        if step % 50 == 0 {
            eprint!("\rseed {seed}: warm start {step}/{}   ", config.warm_steps);
        }
    })?;
    eprintln!();
    let temporary = path.with_extension("tmp");
    save_tensors(&temporary, &decoder.trained_tensors())?;
    std::fs::rename(&temporary, &path)?;
    Ok((decoder, cpu_seconds() - started))
}

fn cache_folder() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => anyhow::bail!("neither XDG_CACHE_HOME nor HOME is set; set one to keep warm starts"),
    };
    let folder = base.join("s3-operator");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// CPU time of this process, user and system, seconds.
pub fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
