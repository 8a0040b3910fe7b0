//! Keys and values of the tokens already processed, per layer and row. Rows have their own
//! lengths and can be copied (a shared prompt is computed once) and cut back.

use candle_core::{DType, Device, Tensor};

use crate::{
    config::DecoderConfig,
    error::{ModelError, Result},
    ops::Kernels,
};

/// One row of one layer on the CPU: token-major, `kv_heads * head_dim` floats a token.
#[derive(Clone, Default)]
pub(crate) struct RowKv {
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// One layer on any device: `[rows, kv_heads, capacity, head_dim]` each.
#[derive(Clone)]
pub(crate) struct PaddedKv {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

pub(crate) enum Store {
    Rows(Vec<Vec<RowKv>>),
    Padded { layers: Vec<PaddedKv>, capacity: usize },
}

/// A KV cache; made by [`crate::Decoder::cache`].
pub struct KvCache {
    pub(crate) lens: Vec<usize>,
    pub(crate) store: Store,
    width: usize,
    kv_heads: usize,
    pub(crate) computed: u64,
}

/// Slots that a padded cache grows by.
const GROWTH: usize = 256;

impl KvCache {
    pub(crate) fn new(
        config: &DecoderConfig,
        rows: usize,
        kernels: Kernels,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let store = if kernels == Kernels::Slices {
            Store::Rows(vec![vec![RowKv::default(); rows]; config.layers])
        } else {
            let shape = (rows, config.kv_heads, GROWTH, config.head_dim);
            let layers = (0..config.layers)
                .map(|_| {
                    Ok(PaddedKv { k: Tensor::zeros(shape, dtype, device)?, v: Tensor::zeros(shape, dtype, device)? })
                })
                .collect::<Result<_>>()?;
            Store::Padded { layers, capacity: GROWTH }
        };
        let (width, kv_heads) = (config.kv_heads * config.head_dim, config.kv_heads);
        Ok(Self { lens: vec![0; rows], store, width, kv_heads, computed: 0 })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lens.len()
    }

    /// Tokens that `row` holds.
    pub fn len(&self, row: usize) -> usize {
        self.lens[row]
    }

    /// Tokens that went through the model for this cache, or for the one it was forked from before that.
    pub fn computed(&self) -> u64 {
        self.computed
    }

    /// Whether no row holds a token.
    pub fn is_empty(&self) -> bool {
        self.lens.iter().all(|&len| len == 0)
    }

    /// Cuts `row` back to its first `len` tokens; longer is left alone.
    pub fn truncate(&mut self, row: usize, len: usize) {
        let len = len.min(self.lens[row]);
        self.lens[row] = len;
        if let Store::Rows(layers) = &mut self.store {
            for layer in layers {
                layer[row].k.truncate(len * self.width);
                layer[row].v.truncate(len * self.width);
            }
        }
    }

    /// A new cache whose row `i` is a copy of row `from[i]` of this one.
    pub fn fork(&self, from: &[usize]) -> Result<Self> {
        self.check_rows(from)?;
        let store = match &self.store {
            Store::Rows(layers) => {
                Store::Rows(layers.iter().map(|layer| from.iter().map(|&row| layer[row].clone()).collect()).collect())
            }
            Store::Padded { layers, capacity } => {
                let index: Vec<u32> = from.iter().map(|&row| row as u32).collect();
                let layers = layers
                    .iter()
                    .map(|layer| {
                        let index = Tensor::from_slice(&index, index.len(), layer.k.device())?;
                        Ok(PaddedKv { k: layer.k.index_select(&index, 0)?, v: layer.v.index_select(&index, 0)? })
                    })
                    .collect::<Result<_>>()?;
                Store::Padded { layers, capacity: *capacity }
            }
        };
        Ok(Self {
            lens: from.iter().map(|&row| self.lens[row]).collect(),
            store,
            width: self.width,
            kv_heads: self.kv_heads,
            computed: self.computed,
        })
    }

    /// Replaces `row` by a copy of `from_row` of another cache of the same model.
    pub fn adopt(&mut self, row: usize, from: &Self, from_row: usize) -> Result<()> {
        self.check_rows(&[row])?;
        from.check_rows(&[from_row])?;
        let len = from.lens[from_row];
        self.reserve(len)?;
        match (&mut self.store, &from.store) {
            (Store::Rows(to), Store::Rows(layers)) => {
                for (to, layer) in to.iter_mut().zip(layers) {
                    to[row].clone_from(&layer[from_row]);
                }
            }
            (Store::Padded { layers: to, .. }, Store::Padded { layers, .. }) if len > 0 => {
                for (to, layer) in to.iter().zip(layers) {
                    for (to, from) in [(&to.k, &layer.k), (&to.v, &layer.v)] {
                        let source = from.narrow(0, from_row, 1)?.narrow(2, 0, len)?.contiguous()?;
                        // A slice along the slots of one row: written through a view of that row.
                        to.narrow(0, row, 1)?.squeeze(0)?.slice_set(&source.squeeze(0)?, 1, 0)?;
                    }
                }
            }
            (Store::Padded { .. }, Store::Padded { .. }) => {}
            _ => return Err(ModelError::invalid("the two caches belong to models on different devices")),
        }
        self.lens[row] = len;
        Ok(())
    }

    /// Makes room for `slots` tokens in every row.
    pub(crate) fn reserve(&mut self, slots: usize) -> Result<()> {
        let Store::Padded { layers, capacity } = &mut self.store else { return Ok(()) };
        if slots <= *capacity {
            return Ok(());
        }
        let grown = slots.next_multiple_of(GROWTH).max(*capacity * 3 / 2 / GROWTH * GROWTH);
        for layer in layers {
            for tensor in [&mut layer.k, &mut layer.v] {
                let (rows, heads, _, dim) = tensor.dims4()?;
                let larger = Tensor::zeros((rows, heads, grown, dim), tensor.dtype(), tensor.device())?;
                larger.slice_set(tensor, 2, 0)?;
                *tensor = larger;
            }
        }
        *capacity = grown;
        Ok(())
    }

    pub(crate) fn check_rows(&self, rows: &[usize]) -> Result<()> {
        match rows.iter().find(|&&row| row >= self.lens.len()) {
            Some(row) => Err(ModelError::invalid(format!("row {row} of a cache with {} rows", self.lens.len()))),
            None => Ok(()),
        }
    }
}
