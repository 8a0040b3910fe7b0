//! Which of several servers of the same model takes a prompt.
//!
//! A model server keeps the keys and values of prompts it has seen, so a prompt should go where its beginning
//! went before: consistent hashing of the beginning, with a bound on load (CHWBL). A server that is fuller than
//! a quarter above the mean is passed over, and one that rests is too; when a server goes, only its own prompts
//! move.

use crate::breaker::Breaker;
use crate::plain::Pool;
use crate::provider::Call;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Places of one server on the ring: enough for an even split.
const PLACES: usize = 128;
/// Bytes of the prompt that decide: a conversation's later turns share them with its first.
const PREFIX: usize = 512;

/// One server.
pub(crate) struct Site {
    pub url: reqwest::Url,
    pub breaker: Breaker,
    /// Connections to it, where it is reached without TLS.
    pub plain: Option<Pool>,
    load: AtomicUsize,
}

impl Site {
    pub fn new(url: reqwest::Url) -> Self {
        let plain = (url.scheme() == "http").then(|| Pool::new(&url));
        Self { url, breaker: Breaker::default(), plain, load: AtomicUsize::new(0) }
    }
}

/// A call in work at a site.
pub(crate) struct Visit<'a>(&'a Site);

impl<'a> Visit<'a> {
    pub fn site(&self) -> &'a Site {
        self.0
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The servers of a provider.
pub(crate) struct Sites {
    sites: Vec<Site>,
    ring: Vec<(u64, usize)>,
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// What decides where a call goes.
pub(crate) fn beginning(call: &Call) -> u64 {
    let mut left = PREFIX;
    let mut parts: Vec<&[u8]> = Vec::new();
    let texts = call.messages.iter().map(|message| message.content.as_str()).chain(call.text.as_deref());
    for text in texts {
        let take = text.len().min(left);
        parts.push(&text.as_bytes()[..take]);
        left -= take;
        if left == 0 {
            break;
        }
    }
    hash(&parts)
}

impl Sites {
    pub fn new(urls: Vec<reqwest::Url>) -> Self {
        let mut ring: Vec<(u64, usize)> = Vec::new();
        if urls.len() > 1 {
            for (index, url) in urls.iter().enumerate() {
                ring.extend((0..PLACES).map(|p| (hash(&[url.as_str().as_bytes(), &p.to_le_bytes()]), index)));
            }
            ring.sort_unstable();
        }
        Self { sites: urls.into_iter().map(Site::new).collect(), ring }
    }

    pub fn is_single(&self) -> bool {
        self.sites.len() == 1
    }

    /// The server for a prompt, `avoid` only if there is no other; or how long all of them rest.
    pub fn choose(&self, beginning: u64, avoid: Option<&Site>, now: Instant) -> Result<Visit<'_>, Duration> {
        let visit = |site: &Site| site.load.fetch_add(1, Ordering::Relaxed);
        if let [site] = self.sites.as_slice() {
            site.breaker.admit(now)?;
            visit(site);
            return Ok(Visit(site));
        }
        let total: usize = self.sites.iter().map(|site| site.load.load(Ordering::Relaxed)).sum();
        let bound = ((total + 1) * 5).div_ceil(4 * self.sites.len());
        let start = self.ring.partition_point(|(at, _)| *at < beginning);
        let mut order: Vec<&Site> = Vec::with_capacity(self.sites.len());
        for (_, index) in self.ring[start..].iter().chain(&self.ring[..start]) {
            let site = &self.sites[*index];
            if !order.iter().any(|known| std::ptr::eq(*known, site)) {
                order.push(site);
                if order.len() == self.sites.len() {
                    break;
                }
            }
        }
        let avoided = |site: &Site| avoid.is_some_and(|avoid| std::ptr::eq(avoid, site));
        let free = |site: &&Site| site.load.load(Ordering::Relaxed) < bound && !avoided(site);
        let preferred = order.iter().copied().filter(free);
        let others = order.iter().copied().filter(|site| !free(site) && !avoided(site));
        let last = order.iter().copied().filter(|site| avoided(site));
        let mut shortest = Duration::MAX;
        for site in preferred.chain(others).chain(last) {
            match site.breaker.admit(now) {
                Ok(()) => {
                    visit(site);
                    return Ok(Visit(site));
                }
                Err(rest) => shortest = shortest.min(rest),
            }
        }
        Err(shortest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::{Message, Role, Sampling};
    use std::collections::VecDeque;

    fn sites(count: usize) -> Sites {
        Sites::new((0..count).map(|i| format!("http://10.0.0.{i}:8000/v1").parse().unwrap()).collect())
    }

    fn call(text: &str) -> Call {
        Call::chat(vec![Message::new(Role::User, text)], Sampling::greedy(None, &[]))
    }

    /// Conversations whose turns arrive interleaved, on servers that each remember 24 beginnings: the share of
    /// turns that met their own, and the fullest server over the mean.
    fn simulate(choose: impl Fn(&Sites, usize, u64, usize) -> usize) -> (f64, f64) {
        const SERVERS: usize = 8;
        let sites = sites(SERVERS);
        let mut known: Vec<VecDeque<u64>> = vec![VecDeque::new(); SERVERS];
        let mut served = [0usize; SERVERS];
        let mut under_way: VecDeque<Visit<'_>> = VecDeque::new();
        let (mut hits, mut repeats) = (0, 0);
        for turn in 0..4 {
            for talk in 0..160 {
                let text = format!("talk {talk} {}{}", "context ".repeat(80), "more ".repeat(turn));
                let at = beginning(&call(&text));
                let site = choose(&sites, talk, at, turn);
                let site = if site == usize::MAX {
                    let visit = sites.choose(at, None, Instant::now()).unwrap();
                    let index = sites.sites.iter().position(|s| std::ptr::eq(s, visit.site())).unwrap();
                    under_way.push_back(visit);
                    if under_way.len() > 32 {
                        under_way.pop_front();
                    }
                    index
                } else {
                    site
                };
                served[site] += 1;
                if turn > 0 {
                    repeats += 1;
                    hits += usize::from(known[site].contains(&at));
                }
                known[site].retain(|other| *other != at);
                known[site].push_back(at);
                if known[site].len() > 24 {
                    known[site].pop_front();
                }
            }
        }
        let mean = served.iter().sum::<usize>() as f64 / SERVERS as f64;
        (f64::from(hits as u32) / f64::from(repeats), *served.iter().max().unwrap() as f64 / mean)
    }

    #[test]
    fn a_talk_returns_to_the_server_that_knows_it_and_load_stays_even() {
        let (hits, peak) = simulate(|_, _, _, _| usize::MAX);
        let (spread, _) = simulate(|_, talk, _, turn| (talk * 7 + turn * 3) % 8);
        assert!(hits >= 0.85 && peak <= 1.3, "hits {hits:.3}, peak {peak:.3}");
        assert!(hits >= 5.0 * spread.max(0.1), "prefix {hits:.3}, round robin {spread:.3}");
    }

    #[test]
    fn when_a_server_goes_only_its_talks_move() {
        let (eight, now) = (sites(8), Instant::now());
        let url = |visit: &Visit<'_>| visit.site().url.to_string();
        let before: Vec<String> =
            (0..500).map(|i| url(&eight.choose(beginning(&call(&format!("talk {i}"))), None, now).unwrap())).collect();
        let gone = &eight.sites[3];
        for _ in 0..16 {
            gone.breaker.note(true, now);
        }
        for (i, home) in before.iter().enumerate() {
            let after = url(&eight.choose(beginning(&call(&format!("talk {i}"))), None, now).unwrap());
            assert_eq!(after == *home, *home != gone.url.to_string(), "{i}");
        }
    }

    #[test]
    fn a_retry_goes_elsewhere_and_a_full_rest_says_how_long() {
        let (two, now) = (sites(2), Instant::now());
        let first = two.choose(7, None, now).unwrap();
        let second = two.choose(7, Some(first.site()), now).unwrap();
        assert_ne!(first.site().url, second.site().url);
        for site in &two.sites {
            for _ in 0..16 {
                site.breaker.note(true, now);
            }
        }
        let rest = two.choose(7, None, now).err().unwrap();
        assert!(rest > Duration::ZERO && rest < Duration::from_secs(1), "{rest:?}");
    }
}
