//! Every operation over threads and over TCP: equal results, the documented order, and no hang when a rank goes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use s3_collective::{Collective, CollectiveError, Local, Stop, Tcp, TcpOptions, chunk, share};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn never() -> Stop {
    Arc::new(|| false)
}

/// Listeners of all ranks, and their addresses.
fn members(size: usize) -> (Vec<TcpListener>, Vec<String>) {
    let held: Vec<TcpListener> = (0..size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    (held, addresses)
}

fn options(rank: usize, members: &[String]) -> TcpOptions {
    TcpOptions {
        rank,
        members: members.to_vec(),
        listen: None,
        team: "job/1".into(),
        token: b"secret".to_vec(),
        together: Duration::from_secs(60),
        silence: Duration::from_secs(20),
        stop: never(),
    }
}

/// The same work on every rank of a team, over threads or TCP.
fn on<T: Send>(tcp: bool, size: usize, work: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
    if tcp {
        let (held, members) = members(size);
        let work = &work;
        return std::thread::scope(|scope| {
            let ranks: Vec<_> = held
                .into_iter()
                .enumerate()
                .map(|(rank, listener)| {
                    let options = options(rank, &members);
                    scope.spawn(move || {
                        let team = Tcp::connect_on(&listener, &options).unwrap();
                        let result = work(&team);
                        team.leave(0, "");
                        result
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
    }
    let work = &work;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Local::team(size, &never())
            .into_iter()
            .map(|team| {
                scope.spawn(move || {
                    let result = work(&team);
                    team.leave(0, "");
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Values whose sum depends on the order.
fn values(rank: usize, count: usize, seed: u64) -> Vec<f32> {
    let mut x = seed ^ (rank as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..count)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let size = [1e-6, 1.0, 1e6][(x >> 60) as usize % 3];
            ((x >> 33) as f32 / (1u64 << 31) as f32 - 0.5) * size
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn check(tcp: bool, size: usize, count: usize, seed: u64) {
    let all: Vec<Vec<f32>> = (0..size).map(|rank| values(rank, count, seed)).collect();
    let mut sum = all[0].clone();
    for other in &all[1..] {
        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
    // parts of a sum, as micro-batches are: one after the other, however they are shared out
    let parts: Vec<Vec<f32>> = (0..seed as usize % 7).map(|at| values(at, count, seed ^ 5)).collect();
    let one = parts.split_first().map(|(first, rest)| {
        let mut sum = first.clone();
        for part in rest {
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        sum
    });
    let owner = seed as usize % size;
    let results = on(tcp, size, |team| {
        let rank = team.rank();
        team.barrier().unwrap();
        let gathered = team.all_gather(vec![rank as u8; rank]).unwrap();
        assert_eq!(gathered, (0..size).map(|rank| vec![rank as u8; rank]).collect::<Vec<_>>());
        let told = team.broadcast(owner, if rank == owner { vec![9, 8] } else { Vec::new() }).unwrap();
        assert_eq!(told, [9, 8]);
        let part = team.reduce_scatter(&all[rank]).unwrap();
        assert_eq!(bits(&part), bits(&sum[share(count, rank, size)]));
        // one sum for each rank, the last without any part
        let owners: Vec<usize> = (0..size).map(|at| (at + owner) % size).collect();
        let mut mine = |at: usize| {
            if at + 1 == size && size > 1 { Vec::new() } else { parts[share(parts.len(), rank, size)].to_vec() }
        };
        let folded = team.fold(&owners, &mut mine).unwrap();
        for (at, sum) in folded.into_iter().enumerate() {
            let expected = one.as_ref().filter(|_| owners[at] == rank && (at + 1 < size || size == 1));
            assert_eq!(sum.as_deref().map(bits), expected.map(|one| bits(one)), "as one process adds them");
        }
        let mut reduced = all[rank].clone();
        team.all_reduce(&mut reduced).unwrap();
        assert_eq!(team.lost(), None);
        reduced
    });
    assert!(results.iter().all(|result| bits(result) == bits(&sum)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn threads_agree_with_one_process(size in 1usize..6, count in 0usize..70, seed in any::<u64>()) {
        check(false, size, count, seed);
    }

    #[test]
    fn shares_are_contiguous_and_even(count in 0usize..200, size in 1usize..20) {
        let shares: Vec<_> = (0..size).map(|rank| share(count, rank, size)).collect();
        let flat: Vec<usize> = shares.iter().cloned().flatten().collect();
        prop_assert_eq!(flat, (0..count).collect::<Vec<_>>());
        prop_assert!(shares.iter().all(|share| share.len().abs_diff(count / size) <= 1));
        for at in 0..count {
            prop_assert!(shares[chunk(at, count, size)].contains(&at));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn tcp_agrees_with_one_process(size in 1usize..5, count in 0usize..3000, seed in any::<u64>()) {
        check(true, size, count, seed);
    }
}

#[test]
fn two_ranks_that_send_much_at_once_do_not_block_each_other() {
    let count = 6 << 20;
    let results = on(true, 2, |team| {
        let mut own = values(team.rank(), count, 3);
        team.all_reduce(&mut own).unwrap();
        own[count - 1]
    });
    assert_eq!(results[0].to_bits(), results[1].to_bits());
}

#[test]
fn who_leaves_says_why_and_who_waits_hears_it() {
    for tcp in [false, true] {
        let started = Instant::now();
        let results = on(tcp, 3, |team| {
            if team.rank() == 1 {
                team.leave(65, "the gradient is not a number");
                return None;
            }
            let end = team.barrier().err();
            // it hands on what it heard: another one may wait for this rank and not for the first that went
            if let Some(CollectiveError::Left { code, message, .. }) = &end {
                team.leave(*code, message);
            }
            end
        });
        for end in [&results[0], &results[2]] {
            let Some(CollectiveError::Left { code: 65, message, .. }) = end else { panic!("{end:?}") };
            assert_eq!(message, "the gradient is not a number");
        }
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn one_that_ends_without_a_word_is_lost() {
    let (held, members) = members(2);
    let options = [options(0, &members), options(1, &members)];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Tcp::connect_on(&held[0], &options[0]).unwrap().barrier());
        drop(Tcp::connect_on(&held[1], &options[1]).unwrap());
        let end = waiting.join().unwrap();
        assert!(matches!(end, Err(CollectiveError::Lost { rank: 1, .. })), "{end:?}");
    });
}

#[test]
fn one_that_falls_silent_is_lost() {
    // the other side of the protocol, done by a rank that then says nothing any more
    let (held, members) = members(2);
    let mut silent = options(1, &members);
    silent.silence = Duration::from_secs(4000);
    let mut waits = options(0, &members);
    waits.silence = Duration::from_millis(300);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let team = Tcp::connect_on(&held[0], &waits).unwrap();
            let end = team.barrier();
            assert!(team.lost().is_some());
            end
        });
        let team = Tcp::connect_on(&held[1], &silent).unwrap();
        let end = waiting.join().unwrap();
        let Err(CollectiveError::Lost { rank: 1, reason }) = end else { panic!("{end:?}") };
        assert!(reason.contains("nothing was heard"), "{reason}");
        drop(team);
    });
}

#[test]
fn strangers_and_other_attempts_are_turned_away() {
    use std::io::Write;
    let (held, members) = members(2);
    let mut first = options(0, &members);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Tcp::connect_on(&held[0], &options(0, &members)).map(|team| team.barrier()));
        let mut stranger = std::net::TcpStream::connect(&members[0]).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        for (team, token) in [("job/2", b"secret".to_vec()), ("job/1", b"another".to_vec())] {
            let mut other = options(1, &members);
            (other.team, other.token, other.together) = (team.into(), token, Duration::from_millis(300));
            let end = Tcp::connect_on(&held[1], &other).err().unwrap();
            let CollectiveError::Rendezvous { missing, .. } = &end else { panic!("{end:?}") };
            assert!(missing.contains("another attempt"), "{missing}");
        }
        let team = Tcp::connect_on(&held[1], &options(1, &members)).unwrap();
        team.barrier().unwrap();
        waiting.join().unwrap().unwrap().unwrap();
    });
    // nobody comes: the wait has an end, and a request to stop ends it at once
    let (held, members) = self::members(2);
    first.members = members;
    first.together = Duration::from_millis(200);
    assert!(matches!(Tcp::connect_on(&held[0], &first), Err(CollectiveError::Rendezvous { .. })));
    let asked = Arc::new(AtomicBool::new(true));
    first.stop = Arc::new(move || asked.load(Ordering::SeqCst));
    first.together = Duration::from_secs(60);
    assert!(matches!(Tcp::connect_on(&held[0], &first), Err(CollectiveError::Interrupted)));
}

#[test]
fn ranks_out_of_step_are_told() {
    let results =
        on(false, 2, |team| if team.rank() == 0 { team.barrier().err() } else { team.all_gather(Vec::new()).err() });
    assert!(results.iter().any(|end| matches!(end, Some(CollectiveError::OutOfStep { .. }))), "{results:?}");
}
