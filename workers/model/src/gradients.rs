//! Gradients by tensor name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::{cpu, error::Result, linear::accumulate, ops::with_slice};

/// Gradients (f32) of the trained tensors by name.
#[derive(Clone, Debug, Default)]
pub struct Gradients(pub BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds another batch's gradients.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        for (name, gradient) in &other.0 {
            accumulate(&mut self.0, name.clone(), gradient.clone())?;
        }
        Ok(())
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.0.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// Euclidean norm of all gradients together, summed in name order in f64.
    pub fn global_norm(&self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if self.0.values().all(|g| g.device().is_cuda() && g.dtype() == DType::F32 && g.is_contiguous()) {
            return Ok(crate::cuda::ops::sum_of_squares(&self.0.values().collect::<Vec<_>>())?.sqrt());
        }
        let mut sum = 0.0;
        for gradient in self.0.values() {
            let values = gradient.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            sum += with_slice(&values, cpu::sum_of_squares)?;
        }
        Ok(sum.sqrt())
    }

    /// Scales down to `max_norm` when the norm is above it; returns the norm before.
    pub fn clip(&mut self, max_norm: f64) -> Result<f64> {
        let norm = self.global_norm()?;
        if norm > max_norm && max_norm > 0.0 {
            self.scale(max_norm / norm)?;
        }
        Ok(norm)
    }

    /// Whether there is no gradient.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
