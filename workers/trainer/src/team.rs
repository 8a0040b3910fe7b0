//! The replicas of a training: how they meet, and how they tell each other what only one of them knows.
//!
//! A process holds one rank, or one for each of its GPUs, as threads. All ranks run the same steps; what is done
//! once (files, the baseline's answers, checkpoints) is done by the first rank, which tells the others.

use s3_collective::{Collective, CollectiveError, Local, Stop, Tcp, TcpOptions};
use s3_config::{Runtime, TeamConfig};
use s3_rollout::RolloutError;
use s3_telemetry::{Failure, Shutdown};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// A place in the team, before anybody has met.
pub enum Place {
    /// Among the threads of this process.
    Threads(Local),
    /// Among processes.
    Processes(Box<TcpOptions>),
}

impl Place {
    /// Meets the others.
    pub fn take(self) -> Result<Arc<dyn Collective>, CollectiveError> {
        Ok(match self {
            Self::Threads(local) => Arc::new(local),
            Self::Processes(options) => Arc::new(Tcp::connect(&options)?),
        })
    }
}

/// The places of this process; one where nothing is said of others.
pub fn places(runtime: &Runtime, shutdown: &Shutdown) -> Result<Vec<Place>, Failure> {
    let Some(team) = &runtime.team else { return Ok(vec![Place::Threads(Local::alone())]) };
    let local = team.local.max(1) as usize;
    let asked = shutdown.clone();
    let stop: Stop = Arc::new(move || asked.requested());
    if team.members.len() < 2 {
        return Ok(Local::team(local, &stop).into_iter().map(Place::Threads).collect());
    }
    let token = match &team.token_file {
        Some(path) => std::fs::read(path)
            .map_err(|e| Failure::input(format!("the replicas' token {}: {e}", path.display())))?
            .trim_ascii()
            .to_vec(),
        None => Vec::new(),
    };
    let epoch = runtime.attempt.as_ref().map_or(0, |attempt| attempt.epoch);
    let members = addresses(team, local)?;
    let place = |at: usize| {
        Place::Processes(Box::new(TcpOptions {
            rank: team.rank as usize * local + at,
            members: members.clone(),
            listen: None,
            team: format!("{}/{epoch}", runtime.name),
            token: token.clone(),
            together: Duration::from_secs(team.together_seconds),
            silence: Duration::from_secs(team.silence_seconds.max(1)),
            stop: stop.clone(),
        }))
    };
    Ok((0..local).map(place).collect())
}

/// Addresses of all ranks: those of one process follow its own, port by port.
fn addresses(team: &TeamConfig, local: usize) -> Result<Vec<String>, Failure> {
    let mut all = Vec::with_capacity(team.members.len() * local);
    for member in &team.members {
        let parts = member.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let Some((host, first)) = parts else {
            return Err(Failure::input(format!("runtime.team.members: {member}: write it as HOST:PORT")));
        };
        for at in 0..local as u16 {
            let port = first.checked_add(at);
            let port =
                port.ok_or_else(|| Failure::input(format!("runtime.team.members: {member}: no port is left")))?;
            all.push(format!("{host}:{port}"));
        }
    }
    Ok(all)
}

/// Whether this rank does what is done once.
pub fn first(team: &dyn Collective) -> bool {
    team.rank() == 0
}

/// What the first rank finds, on every rank. Its failure is told to the others as it leaves.
pub fn tell<T, E>(team: &dyn Collective, work: impl FnOnce() -> Result<T, E>) -> Result<T, E>
where
    T: Serialize + DeserializeOwned,
    E: From<RolloutError>,
{
    if team.size() == 1 {
        return work();
    }
    if first(team) {
        let found = work()?;
        let bytes = serde_json::to_vec(&found).map_err(|e| RolloutError::from(defect(&e)))?;
        team.broadcast(0, bytes).map_err(RolloutError::from)?;
        return Ok(found);
    }
    let bytes = team.broadcast(0, Vec::new()).map_err(RolloutError::from)?;
    Ok(serde_json::from_slice(&bytes).map_err(|e| RolloutError::from(defect(&e)))?)
}

/// What every rank has, in rank order.
pub fn gather<T: Serialize + DeserializeOwned>(team: &dyn Collective, own: T) -> Result<Vec<T>, RolloutError> {
    if team.size() == 1 {
        return Ok(vec![own]);
    }
    let all = team.all_gather(serde_json::to_vec(&own).map_err(|e| defect(&e))?)?;
    all.iter().map(|bytes| Ok(serde_json::from_slice(bytes).map_err(|e| defect(&e))?)).collect()
}

/// Lists of numbers of all ranks, one after the other, bit for bit.
pub fn gather_rows(team: &dyn Collective, own: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, RolloutError> {
    if team.size() == 1 {
        return Ok(own);
    }
    let bits: Vec<Vec<u32>> = own.iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect();
    let all = gather(team, bits)?;
    Ok(all.into_iter().flatten().map(|row| row.into_iter().map(f32::from_bits).collect()).collect())
}

fn defect(error: &serde_json::Error) -> CollectiveError {
    CollectiveError::Input(format!("a message between replicas: {error}; run the same version everywhere"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranks_of_one_process_follow_its_address() {
        let team = TeamConfig { members: vec!["a.b:9400".into(), "10.0.0.1:9500".into()], ..TeamConfig::default() };
        assert_eq!(addresses(&team, 2).unwrap(), ["a.b:9400", "a.b:9401", "10.0.0.1:9500", "10.0.0.1:9501"]);
        let wrong = TeamConfig { members: vec!["a".into()], ..team };
        assert!(addresses(&wrong, 1).unwrap_err().to_string().contains("HOST:PORT"));
    }
}
