//! Recordings of work that is queued again and again. Threads share a device's stream, and a stream that records takes
//! in whatever any of them queues; so recordings are made on a stream of their own, which never runs anything.
#![allow(unsafe_code)] // calls into the driver; each says why it is sound

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{
    CudaDevice,
    cuda_backend::{
        DeviceId,
        cudarc::{
            cublas::{CudaBlas, sys as blas},
            driver::{CudaGraph, CudaStream, result, sys},
        },
    },
};

use super::launch::{failed, workspace};
use crate::error::Result;

/// What a device's recordings are made with.
struct Recorder {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
}

/// One for each device, made at its first recording; held while one is made.
static RECORDERS: Mutex<Option<HashMap<DeviceId, Arc<Recorder>>>> = Mutex::new(None);

thread_local! {
    /// Where this thread's work goes while it records.
    static RECORDING: RefCell<Option<Arc<Recorder>>> = const { RefCell::new(None) };
}

/// Ends this thread's recording, also when its work panics.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        RECORDING.set(None);
    }
}

/// Where this thread's kernels go: the device's stream, or that of its recording.
pub(crate) fn stream(device: &CudaDevice) -> Arc<CudaStream> {
    RECORDING
        .with_borrow(|recorder| recorder.as_ref().map(|r| r.stream.clone()))
        .unwrap_or_else(|| device.cuda_stream())
}

/// The same for matrix products. The handle lives as long as the device.
pub(crate) fn products(device: &CudaDevice) -> blas::cublasHandle_t {
    RECORDING
        .with_borrow(|recorder| recorder.as_ref().map(|r| *r.blas.handle()))
        .unwrap_or_else(|| *device.cublas_handle().handle())
}

/// The kernels and products that `work` queues on this thread, to be [`replay`]ed; none of them runs now.
pub(crate) fn record(device: &CudaDevice, work: impl FnOnce() -> Result<()>) -> Result<Option<CudaGraph>> {
    let what = "recording a step";
    let mut recorders = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let recorders = recorders.get_or_insert_with(HashMap::new);
    let recorder = match recorders.get(&device.id()) {
        Some(recorder) => recorder.clone(),
        None => {
            let stream = device.cuda_stream().context().new_stream().map_err(|e| failed(what, e))?;
            let blas = CudaBlas::new(stream.clone()).map_err(|e| failed(what, e))?;
            workspace(device, *blas.handle())?;
            let recorder = Arc::new(Recorder { stream, blas });
            recorders.insert(device.id(), recorder.clone());
            recorder
        }
    };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    recorder.stream.begin_capture(mode).map_err(|e| failed(what, e))?;
    let queued = {
        RECORDING.set(Some(recorder.clone()));
        let _ending = Ending;
        work()
    };
    let graph = recorder.stream.end_capture(sys::CUgraphInstantiate_flags(0));
    queued?;
    graph.map_err(|e| failed(what, e))
}

/// Queues a recording on the device's stream.
pub(crate) fn replay(device: &CudaDevice, graph: &CudaGraph) -> Result<()> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().map_err(|e| failed("replaying a step", e))?;
    // SAFETY: the recording and the stream are of this device and alive; what was recorded names memory of its owner
    unsafe { result::graph::launch(graph.cu_graph_exec(), stream.cu_stream()) }
        .map_err(|e| failed("replaying a step", e))
}
