//! Generation on the GPU: a step of all rows is recorded once and replayed, tokens are chosen on the device, and
//! the next step is queued before the last one's tokens are read.
#![allow(unsafe_code)] // host memory that the driver pins

use std::collections::VecDeque;

use candle_core::{
    CudaDevice, DType, Device, Tensor,
    cuda_backend::cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, PinnedHostSlice},
};

use super::{
    launch::{Arg, Shape, Side, arg, failed, fresh, launch, product, start},
    one::One,
    ops, record,
};
use crate::{
    cache::{KvCache, Store},
    decoder::{DOWN, Decoder, GATE, K, O, Q, UP, V},
    error::{ModelError, Result},
    generate::{GenerateRequest, Generated, Sampling},
    sample::SampleKey,
};

/// Steps whose random numbers are on the device at once.
const TABLE: usize = 64;

/// Results on their way to the host.
const AHEAD: usize = 2;

/// Query heads that may share a key head, and their kernels.
const GROUPS: [[&str; 8]; 2] = [
    [
        "attend_one_64_1",
        "attend_one_64_2",
        "attend_one_64_3",
        "attend_one_64_4",
        "attend_one_64_5",
        "attend_one_64_6",
        "attend_one_64_7",
        "attend_one_64_8",
    ],
    [
        "attend_one_128_1",
        "attend_one_128_2",
        "attend_one_128_3",
        "attend_one_128_4",
        "attend_one_128_5",
        "attend_one_128_6",
        "attend_one_128_7",
        "attend_one_128_8",
    ],
];

/// Whether [`generate`] serves this decoder and sampling.
pub(crate) fn serves(decoder: &Decoder, sampling: Sampling) -> bool {
    decoder.kernels.fused() && sampling.top_p >= 1.0 && decoder.config.group() <= GROUPS[0].len()
}

/// A low-rank pair in bf16.
struct Low {
    a: Tensor,
    b: Tensor,
    scale: f32,
    /// `[rows, rank]`
    out: Tensor,
}

/// One step of some rows of a cache, with the memory it works in.
struct Step<'a> {
    decoder: &'a Decoder,
    device: CudaDevice,
    low: Vec<Vec<Option<Low>>>,
    cached: Vec<(Tensor, Tensor)>,
    count: usize,
    capacity: usize,
    chunk: usize,
    temperature: f32,
    x: Tensor,
    normed: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    gate: Tensor,
    up: Tensor,
    act: Tensor,
    logits: Tensor,
    scratch: Tensor,
    places: CudaSlice<i32>,
    done: CudaSlice<u32>,
    lens: CudaSlice<i32>,
    steps: CudaSlice<i32>,
    tokens: CudaSlice<u32>,
    said: CudaSlice<u32>,
    uniforms: CudaSlice<f64>,
    /// All layers and the head as one kernel, where that serves.
    one: Option<One>,
    runs: usize,
    graph: Option<CudaGraph>,
}

impl<'a> Step<'a> {
    fn new(decoder: &'a Decoder, cache: &KvCache, rows: &[usize], temperature: f32) -> Result<Self> {
        let Device::Cuda(device) = decoder.device.clone() else {
            return Err(ModelError::invalid("decoding on the GPU with a model that is not there"));
        };
        let Store::Padded { layers, capacity } = &cache.store else {
            return Err(ModelError::invalid("the cache belongs to a model on another device"));
        };
        let (c, n) = (&decoder.config, rows.len());
        let new = |width: usize| fresh((n, width), DType::BF16, &device);
        // Long pieces where rows keep the multiprocessors busy; never more pieces than a piece has keys.
        let mut chunk = if n * c.kv_heads >= 64 { 256 } else { 64 };
        while capacity.div_ceil(chunk) > chunk {
            chunk *= 2;
        }
        let pieces = capacity.div_ceil(chunk);
        let mut low = Vec::new();
        for layer in &decoder.layers {
            let pair = |linear: &crate::linear::Linear| match &linear.lora {
                None => Ok(None),
                Some(pair) => Ok::<_, ModelError>(Some(Low {
                    a: pair.a.to_dtype(DType::BF16)?,
                    b: pair.b.to_dtype(DType::BF16)?,
                    scale: pair.scale as f32,
                    out: new(pair.a.dim(0)?)?,
                })),
            };
            low.push(layer.linears.iter().map(pair).collect::<Result<_>>()?);
        }
        let stream = device.cuda_stream();
        let places: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let (width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let scratch = n * c.kv_heads * pieces * c.group() * (c.head_dim + 2);
        let cached: Vec<_> = layers.iter().map(|layer| (layer.k.clone(), layer.v.clone())).collect();
        let plain = low.iter().flatten().all(Option::is_none);
        let one = if n == 1 && plain { One::new(decoder, &device, &cached, *capacity)? } else { None };
        Ok(Self {
            decoder,
            low,
            cached,
            count: n,
            capacity: *capacity,
            chunk,
            temperature,
            x: new(c.hidden)?,
            normed: new(c.hidden)?,
            q: new(width)?,
            k: new(kv_width)?,
            v: new(kv_width)?,
            o: new(width)?,
            gate: new(c.ffn)?,
            up: new(c.ffn)?,
            act: new(c.ffn)?,
            logits: new(c.vocab)?,
            scratch: fresh(scratch, DType::F32, &device)?,
            places: stream.clone_htod(&places).map_err(|e| failed("copying", e))?,
            done: device.alloc_zeros(n * c.kv_heads)?,
            lens: device.alloc_zeros(n)?,
            steps: device.alloc_zeros(n)?,
            tokens: device.alloc_zeros(n)?,
            said: device.alloc_zeros(2 * n)?,
            uniforms: device.alloc_zeros(n * TABLE)?,
            one,
            runs: 0,
            graph: None,
            device,
        })
    }

    fn at<T>(&self, slice: &CudaSlice<T>) -> Arg {
        Arg::At(start(slice, &self.device, 0))
    }

    /// Where each row's next token goes; negative for a row that rests.
    fn set_lens(&mut self, lens: &[i32]) -> Result<()> {
        self.device.cuda_stream().memcpy_htod(lens, &mut self.lens).map_err(|e| failed("copying", e))
    }

    /// The next [`TABLE`] random numbers of each row.
    fn set_uniforms(&mut self, uniforms: &[f64]) -> Result<()> {
        let stream = self.device.cuda_stream();
        stream.memcpy_htod(uniforms, &mut self.uniforms).map_err(|e| failed("copying", e))?;
        stream.memset_zeros(&mut self.steps).map_err(|e| failed("copying", e))
    }

    fn set_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        self.device.cuda_stream().memcpy_htod(tokens, &mut self.tokens).map_err(|e| failed("copying", e))
    }

    /// Queues the step: the first time kernel by kernel, which loads them, then as a recording, in which a kernel
    /// may overlap its predecessor.
    fn run(&mut self) -> Result<()> {
        self.runs += 1;
        if self.runs == 1 {
            return self.queue();
        }
        if self.graph.is_none() {
            self.graph = record::record(&self.device, || self.queue())?;
        }
        match &self.graph {
            Some(graph) => record::replay(&self.device, graph),
            None => Err(ModelError::invalid("GPU: the recording of a step is empty")),
        }
    }

    fn queue(&self) -> Result<()> {
        let (d, c) = (self.decoder, &self.decoder.config);
        if let Some(one) = &self.one {
            one.queue(d, &self.device, [&self.lens, &self.places], &self.tokens, &self.logits)?;
            return self.choose(&self.logits);
        }
        let args = [
            arg(d.embed.dense()?, DType::BF16)?,
            self.at(&self.tokens),
            arg(&self.x, DType::BF16)?,
            Arg::Int(c.hidden as i32),
        ];
        launch(&self.device, "decode", "embed", Shape::new((self.count, 1, 1), 128).overlapping(self.runs > 1), &args)?;
        for index in 0..d.layers.len() {
            self.layer(index)?;
        }
        ops::rms_norm_to(&self.normed, &self.x, &d.norm, c.norm_eps)?;
        product(&self.logits, Side(&self.normed, false), Side(d.output().dense()?, true), 1.0, 0.0)?;
        self.choose(&self.logits)
    }

    fn layer(&self, index: usize) -> Result<()> {
        let (layer, c) = (&self.decoder.layers[index], &self.decoder.config);
        ops::rms_norm_to(&self.normed, &self.x, &layer.input_norm, c.norm_eps)?;
        for (i, out) in [(Q, &self.q), (K, &self.k), (V, &self.v)] {
            self.linear(index, i, &self.normed, out, 0.0)?;
        }
        self.attend(index)?;
        self.linear(index, O, &self.o, &self.x, 1.0)?;
        ops::rms_norm_to(&self.normed, &self.x, &layer.post_norm, c.norm_eps)?;
        self.linear(index, GATE, &self.normed, &self.gate, 0.0)?;
        self.linear(index, UP, &self.normed, &self.up, 0.0)?;
        ops::swiglu_to(&self.act, &self.gate, &self.up)?;
        self.linear(index, DOWN, &self.act, &self.x, 1.0)
    }

    /// `out = x W^T + keep * out`, the low-rank pair included, the bias not.
    fn linear(&self, index: usize, i: usize, x: &Tensor, out: &Tensor, keep: f32) -> Result<()> {
        let weight = self.decoder.layers[index].linears[i].weight.dense()?;
        product(out, Side(x, false), Side(weight, true), 1.0, keep)?;
        if let Some(low) = &self.low[index][i] {
            product(&low.out, Side(x, false), Side(&low.a, true), 1.0, 0.0)?;
            product(out, Side(&low.out, false), Side(&low.b, true), low.scale, 1.0)?;
        }
        Ok(())
    }

    fn attend(&self, index: usize) -> Result<()> {
        let (c, layer) = (&self.decoder.config, &self.decoder.layers[index]);
        let Some((cos, sin)) = &self.decoder.rope.tables else {
            return Err(ModelError::invalid("the rotary tables are not on the GPU"));
        };
        let (keys, values) = &self.cached[index];
        let mut args = Vec::new();
        for tensor in [&self.q, &self.k, &self.v] {
            args.push(arg(tensor, DType::BF16)?);
        }
        for i in [Q, K, V] {
            args.push(layer.linears[i].bias.as_ref().map_or(Ok(Arg::At(0)), |b| arg(b, DType::BF16))?);
        }
        args.extend([arg(cos, DType::F32)?, arg(sin, DType::F32)?]);
        args.extend([arg(keys, DType::BF16)?, arg(values, DType::BF16)?]);
        args.extend([self.at(&self.lens), self.at(&self.places)]);
        args.extend([arg(&self.o, DType::BF16)?, arg(&self.scratch, DType::F32)?, self.at(&self.done)]);
        let (g, d) = (c.group(), c.head_dim);
        args.extend([c.kv_heads, self.capacity, self.chunk].map(|n| Arg::Int(n as i32)));
        args.push(Arg::Float(std::f32::consts::LOG2_E / (d as f32).sqrt()));
        let floats = g * self.chunk + 5 * g * d + 2 * g;
        let grid = (self.count, c.kv_heads, self.capacity.div_ceil(self.chunk));
        let shape = Shape::new(grid, 128).with_shared(4 * floats as u32).overlapping(self.runs > 1);
        launch(&self.device, "decode", GROUPS[usize::from(d == 128)][g - 1], shape, &args)
    }

    fn choose(&self, logits: &Tensor) -> Result<()> {
        let args = [
            arg(logits, DType::BF16)?,
            self.at(&self.uniforms),
            self.at(&self.steps),
            self.at(&self.lens),
            self.at(&self.tokens),
            self.at(&self.said),
            Arg::Int(self.decoder.config.vocab as i32),
            Arg::Int(TABLE as i32),
            Arg::Float(self.temperature),
        ];
        launch(&self.device, "decode", "choose", Shape::new((self.count, 1, 1), 1024).overlapping(self.runs > 1), &args)
    }
}

/// The part of a generation that one [`Step`] does.
struct Stretch<'a, 'r> {
    step: Step<'a>,
    requests: &'r [GenerateRequest],
    /// The request of each row; none once it has ended.
    slots: Vec<Option<usize>>,
    /// Results under way, by place in `landing`, the oldest first.
    flight: VecDeque<(usize, CudaEvent)>,
    landing: Vec<PinnedHostSlice<u32>>,
    sent: usize,
    /// Steps since the random numbers were set.
    used: usize,
    /// Whether a row has ended since the device was told.
    stale: bool,
}

/// [`crate::generate`] on the GPU, of at least one request for at least one token.
pub(crate) fn generate<'k>(
    decoder: &Decoder,
    cache: &mut KvCache,
    requests: &[GenerateRequest],
    sampling: Sampling,
    key: &dyn Fn(usize, u32) -> SampleKey<'k>,
    stop: &mut dyn FnMut(usize, &[u32]) -> bool,
) -> Result<Vec<Generated>> {
    let mut out = vec![Generated::default(); requests.len()];
    let mut active: Vec<usize> = (0..requests.len()).filter(|&i| requests[i].max_new_tokens > 0).collect();
    if active.is_empty() {
        return Ok(out);
    }
    let items: Vec<(usize, &[u32])> =
        active.iter().map(|&i| (requests[i].row, requests[i].prompt.as_slice())).collect();
    let hidden = decoder.advance(cache, &items)?;
    let logits = ops::linear(&hidden.contiguous()?, decoder.output().dense()?, None)?;
    // Where a request's first new token goes, and room for all: a step holds on to the cache's memory.
    let base: Vec<usize> = requests.iter().map(|r| cache.len(r.row)).collect();
    let longest = active.iter().map(|&i| base[i] + requests[i].max_new_tokens).max().unwrap_or(0);
    cache.reserve(longest.min(decoder.config.max_positions) + 1)?;
    let mut launched = vec![0usize; requests.len()];
    let mut first = Some(logits);
    while !active.is_empty() {
        let rows: Vec<usize> = active.iter().map(|&i| requests[i].row).collect();
        let step = Step::new(decoder, cache, &rows, sampling.temperature)?;
        let mut stretch = Stretch::new(step, requests, &active)?;
        stretch.tell(&base, &launched)?;
        if let Some(logits) = first.take() {
            stretch.randomness(key, &launched)?;
            // rows that move on: one before the place of the new token
            let before: Vec<i32> = active.iter().map(|&i| base[i] as i32 - 1).collect();
            stretch.step.set_lens(&before)?;
            stretch.step.choose(&logits)?;
            stretch.send(&mut launched)?;
        } else {
            let last: Vec<u32> = active.iter().map(|&i| out[i].tokens.last().copied().unwrap_or(0)).collect();
            stretch.step.set_tokens(&last)?;
        }
        stretch.run(decoder, &base, &mut launched, &mut out, key, stop)?;
        active = stretch.slots.iter().flatten().copied().collect();
    }
    for (i, request) in requests.iter().enumerate() {
        let kept = out[i].tokens.len().saturating_sub(1);
        cache.lens[request.row] += kept;
        cache.computed += kept as u64;
    }
    Ok(out)
}

impl<'a, 'r> Stretch<'a, 'r> {
    fn new(step: Step<'a>, requests: &'r [GenerateRequest], active: &[usize]) -> Result<Self> {
        let stream = step.device.cuda_stream();
        let landing = (0..AHEAD)
            // SAFETY: read only after a copy into it has arrived
            .map(|_| unsafe { stream.context().alloc_pinned_with_flags::<u32>(2 * active.len(), 0) })
            .collect::<Result<_, _>>()
            .map_err(|e| failed("host memory", e))?;
        let slots = active.iter().copied().map(Some).collect();
        Ok(Self { step, requests, slots, flight: VecDeque::new(), landing, sent: 0, used: TABLE, stale: false })
    }

    /// Tells the device where each row's next token goes.
    fn tell(&mut self, base: &[usize], launched: &[usize]) -> Result<()> {
        let of = |slot: &Option<usize>| slot.map_or(-1, |i| (base[i] + launched[i]) as i32 - 1);
        let lens: Vec<i32> = self.slots.iter().map(of).collect();
        self.stale = false;
        self.step.set_lens(&lens)
    }

    fn randomness<'k>(&mut self, key: &dyn Fn(usize, u32) -> SampleKey<'k>, launched: &[usize]) -> Result<()> {
        if self.used < TABLE {
            return Ok(());
        }
        let mut all = vec![0f64; self.slots.len() * TABLE];
        for (row, slot) in all.chunks_mut(TABLE).zip(&self.slots) {
            let Some(i) = *slot else { continue };
            for (j, uniform) in row.iter_mut().enumerate() {
                *uniform = key(i, (launched[i] + j) as u32).uniform();
            }
        }
        self.used = 0;
        self.step.set_uniforms(&all)
    }

    /// Queues the way of the last step's tokens to the host.
    fn send(&mut self, launched: &mut [usize]) -> Result<()> {
        let place = self.sent % AHEAD;
        let stream = self.step.device.cuda_stream();
        stream.memcpy_dtoh(&self.step.said, &mut self.landing[place]).map_err(|e| failed("copying", e))?;
        // of its own: the slices' events rest with event tracking off
        let arrived = stream.record_event(None).map_err(|e| failed("copying", e))?;
        self.flight.push_back((place, arrived));
        self.sent += 1;
        self.used += 1;
        for i in self.slots.iter().flatten() {
            launched[*i] += 1;
        }
        Ok(())
    }

    /// Reads the oldest step's tokens.
    fn receive(&mut self, out: &mut [Generated], stop: &mut dyn FnMut(usize, &[u32]) -> bool) -> Result<()> {
        let Some((place, arrived)) = self.flight.pop_front() else { return Ok(()) };
        arrived.synchronize().map_err(|e| failed("a decoding step", e))?;
        let said = self.landing[place].as_slice().map_err(|e| failed("a decoding step", e))?;
        for (slot, pair) in self.slots.iter_mut().zip(said.chunks_exact(2)) {
            let Some(i) = *slot else { continue };
            let (token, logprob) = (pair[0], f32::from_bits(pair[1]));
            if !logprob.is_finite() {
                let row = self.requests[i].row;
                return Err(ModelError::invalid(format!("row {row} has logits that are not finite")));
            }
            out[i].tokens.push(token);
            out[i].logprobs.push(logprob);
            if stop(i, &out[i].tokens) || out[i].tokens.len() >= self.requests[i].max_new_tokens {
                *slot = None;
                self.stale = true;
            }
        }
        Ok(())
    }

    /// Until all rows have ended, or so many that a smaller step pays.
    fn run<'k>(
        &mut self,
        decoder: &Decoder,
        base: &[usize],
        launched: &mut [usize],
        out: &mut [Generated],
        key: &dyn Fn(usize, u32) -> SampleKey<'k>,
        stop: &mut dyn FnMut(usize, &[u32]) -> bool,
    ) -> Result<()> {
        loop {
            let going = self.slots.iter().flatten().count();
            let few = 2 * going <= self.slots.len();
            // A row whose last token is under way needs no step more.
            let wanted = self.slots.iter().flatten().any(|&i| launched[i] < self.requests[i].max_new_tokens);
            let full = |i: &&usize| base[**i] + launched[**i] > decoder.config.max_positions;
            let limit = self.slots.iter().flatten().find(full).copied();
            if going == 0 || few || !wanted || limit.is_some() || self.flight.len() >= AHEAD {
                if !self.flight.is_empty() {
                    self.receive(out, stop)?;
                    continue;
                }
                if let Some(i) = limit {
                    let last = out[i].tokens.last().copied().unwrap_or(0);
                    decoder.check_tokens(&[last], base[i] + launched[i] - 1)?;
                }
                // Rows that ended in flight leave nothing behind; what was launched for the others was received.
                return Ok(());
            }
            if self.stale {
                self.tell(base, launched)?;
            }
            self.randomness(key, launched)?;
            self.step.run()?;
            self.send(launched)?;
        }
    }
}
