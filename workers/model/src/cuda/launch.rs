//! Loading and launching kernels, addresses of tensors, and matrix products by cuBLAS. All work of a device runs
//! on its one stream, so memory that is freed there is not reused before the work that reads it.
#![allow(unsafe_code)] // calls into the driver; each says why it is sound

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, DType, Device, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice, DeviceId,
        cudarc::{
            cublas::{self, sys as blas},
            driver::{
                CudaEvent, CudaFunction, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
                sys::{self, CUfunction_attribute_enum},
            },
            nvrtc::Ptx,
        },
    },
};

use super::record;
use crate::error::{ModelError, Result};

/// Kernels by module: name, machine code.
const MODULES: [(&str, &[u8]); 7] = [
    ("rows", include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin"))),
    ("head", include_bytes!(concat!(env!("OUT_DIR"), "/head.fatbin"))),
    ("adamw", include_bytes!(concat!(env!("OUT_DIR"), "/adamw.fatbin"))),
    ("attention", include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin"))),
    ("decode", include_bytes!(concat!(env!("OUT_DIR"), "/decode.fatbin"))),
    ("one", include_bytes!(concat!(env!("OUT_DIR"), "/one.fatbin"))),
    ("nearest", include_bytes!(concat!(env!("OUT_DIR"), "/nearest.fatbin"))),
];

/// Scratch memory of cuBLAS: what it takes by itself on Hopper.
const WORKSPACE: usize = 32 << 20;

/// Shared memory that a kernel gets without asking.
const SHARED_FREE: u32 = 48 << 10;

/// Settings of a device that only this crate's one stream uses: no events around every use of a tensor, and freed
/// memory stays with the process.
pub(crate) fn prepare(device: &Device) -> Result<()> {
    let Device::Cuda(device) = device else { return Ok(()) };
    // SAFETY: all tensors of the device are used on its one stream
    unsafe { device.disable_event_tracking() };
    let (mut pool, mut keep) = (std::ptr::null_mut(), u64::MAX);
    let context = device.cuda_stream().context().clone();
    workspace(device, *device.cublas_handle().handle())?;
    // SAFETY: the device is open; the attribute is a u64
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device())
            .result()
            .map_err(|e| failed("memory pool", e))?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast())
            .result()
            .map_err(|e| failed("memory pool", e))
    }
}

/// Gives cuBLAS scratch memory, so that it takes none in the midst of its work. It lives as long as the process, as the
/// device does.
pub(crate) fn workspace(device: &CudaDevice, handle: blas::cublasHandle_t) -> Result<()> {
    let workspace = device.alloc_zeros::<u8>(WORKSPACE)?;
    let address = start(&workspace, device, 0);
    std::mem::forget(workspace);
    // SAFETY: the handle is open, the memory is never freed
    unsafe { blas::cublasSetWorkspace_v2(handle, address as *mut _, WORKSPACE) }
        .result()
        .map_err(|e| failed("cuBLAS workspace", e))
}

/// Most bytes of tensors that were held at once since the last call, and are held now.
pub(crate) fn peak_memory(device: &Device) -> Result<(u64, u64)> {
    let Device::Cuda(device) = device else { return Ok((0, 0)) };
    let (mut pool, mut peak, mut now, mut zero) = (std::ptr::null_mut(), 0u64, 0u64, 0u64);
    let stream = device.cuda_stream();
    stream.synchronize().map_err(|e| failed("waiting", e))?;
    let (high, current) = (
        sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
        sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    );
    // SAFETY: the device is open; the attributes are u64
    unsafe {
        let context = stream.context();
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device())
            .result()
            .map_err(|e| failed("memory pool", e))?;
        for (attribute, value) in [(high, &raw mut peak), (current, &raw mut now)] {
            sys::cuMemPoolGetAttribute(pool, attribute, value.cast()).result().map_err(|e| failed("memory pool", e))?;
        }
        sys::cuMemPoolSetAttribute(pool, high, (&raw mut zero).cast())
            .result()
            .map_err(|e| failed("memory pool", e))?;
    }
    Ok((peak, now))
}

/// Bytes that this process can still take: what the card has free, and what the pool keeps unused.
pub(crate) fn free_memory(device: &CudaDevice) -> Result<u64> {
    let (mut pool, mut reserved, mut used) = (std::ptr::null_mut(), 0u64, 0u64);
    let stream = device.cuda_stream();
    let context = stream.context();
    let (free, _) = context.mem_get_info().map_err(|e| failed("free memory", e))?;
    let (all, current) = (
        sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
        sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
    );
    // SAFETY: the device is open; the attributes are u64
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device())
            .result()
            .map_err(|e| failed("memory pool", e))?;
        for (attribute, value) in [(all, &raw mut reserved), (current, &raw mut used)] {
            sys::cuMemPoolGetAttribute(pool, attribute, value.cast()).result().map_err(|e| failed("memory pool", e))?;
        }
    }
    Ok(free as u64 + reserved.saturating_sub(used))
}

/// Work of one kind that was timed: name, begin, end.
type Timed = (String, CudaEvent, CudaEvent);
static TIMED: Mutex<Option<Vec<Timed>>> = Mutex::new(None);

/// Times every kernel and product from now on, which slows them a little.
pub(crate) fn start_timing() {
    *TIMED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
}

/// Milliseconds and count by kernel or product since [`start_timing`], and ends timing.
pub(crate) fn timings() -> Result<Vec<(String, f64, usize)>> {
    let timed = TIMED.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    let mut by: std::collections::BTreeMap<String, (f64, usize)> = std::collections::BTreeMap::new();
    for (name, begin, end) in timed {
        let ms = begin.elapsed_ms(&end).map_err(|e| failed("timing", e))?;
        let entry = by.entry(name).or_default();
        entry.0 += f64::from(ms);
        entry.1 += 1;
    }
    let mut all: Vec<_> = by.into_iter().map(|(name, (ms, n))| (name, ms, n)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(all)
}

/// Runs `work`, between two events when timing is on.
fn timed<T>(device: &CudaDevice, name: impl FnOnce() -> String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if TIMED.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
        return work();
    }
    let stream = record::stream(device);
    let event = || stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(|e| failed("timing", e));
    let begin = event()?;
    let result = work()?;
    let end = event()?;
    if let Some(timed) = TIMED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        timed.push((name(), begin, end));
    }
    Ok(result)
}

/// Kernels that are loaded, and the shared memory that they may take.
type Functions = HashMap<(DeviceId, &'static str), (CudaFunction, u32)>;
static FUNCTIONS: Mutex<Option<Functions>> = Mutex::new(None);

/// A failure of the driver or of cuBLAS.
pub(crate) fn failed(what: &str, error: impl std::fmt::Debug) -> ModelError {
    ModelError::invalid(format!("GPU: {what}: {error:?}"))
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    /// An address on the device; 0 is none.
    At(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

/// Blocks, threads of a block, bytes of shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: (usize, usize, usize),
    pub(crate) block: (u32, u32),
    pub(crate) shared: u32,
    /// Whether the kernel may begin while its predecessor on the stream still runs; it waits for that itself.
    pub(crate) overlaps: bool,
    /// Whether all blocks must be on the GPU at once, for they wait for each other.
    pub(crate) together: bool,
}

impl Shape {
    pub(crate) fn new(grid: (usize, usize, usize), threads: u32) -> Self {
        Self { grid, block: (threads, 1), shared: 0, overlaps: false, together: false }
    }
    /// One thread for each of `n` items.
    pub(crate) fn each(n: usize) -> Self {
        Self::new((n.div_ceil(256), 1, 1), 256)
    }
    pub(crate) fn with_shared(mut self, bytes: u32) -> Self {
        self.shared = bytes;
        self
    }
    pub(crate) fn overlapping(mut self, overlaps: bool) -> Self {
        self.overlaps = overlaps;
        self
    }
    pub(crate) fn together(mut self) -> Self {
        self.together = true;
        self
    }
}

fn function(device: &CudaDevice, module: &str, name: &'static str, shared: u32) -> Result<CudaFunction> {
    let mut guard = FUNCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let functions = guard.get_or_insert_with(HashMap::new);
    if let Some((function, allowed)) = functions.get(&(device.id(), name))
        && shared <= *allowed
    {
        return Ok(function.clone());
    }
    let function = match functions.get(&(device.id(), name)) {
        Some((function, _)) => function.clone(),
        None => load(device, module, name)?,
    };
    if shared > SHARED_FREE {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared.cast_signed()).map_err(|e| failed(name, e))?;
    }
    functions.insert((device.id(), name), (function.clone(), shared.max(SHARED_FREE)));
    Ok(function)
}

fn load(device: &CudaDevice, module: &str, name: &str) -> Result<CudaFunction> {
    let Some((_, code)) = MODULES.iter().find(|(found, _)| *found == module) else {
        return Err(ModelError::invalid(format!("there is no kernel module {module}")));
    };
    let stream = device.cuda_stream();
    let loaded = stream.context().load_module(Ptx::from_binary(code.to_vec())).map_err(|e| {
        failed(&format!("loading kernels of {module} (built for another GPU? set CUDA_COMPUTE_CAP)"), e)
    })?;
    loaded.load_function(name).map_err(|e| failed(name, e))
}

/// The multiprocessors of a GPU that can hold one block of a kernel on each of them and start all together; else 0.
/// `shared` says how much shared memory a block then takes.
pub(crate) fn together(
    device: &CudaDevice,
    module: &str,
    name: &'static str,
    threads: u32,
    shared: impl FnOnce(usize) -> u32,
) -> Result<usize> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH as TOGETHER,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as SHARED,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
    };
    let stream = device.cuda_stream();
    let ask = |what| stream.context().attribute(what).map_err(|e| failed("asking the device", e));
    let multiprocessors = ask(MULTIPROCESSORS)?.unsigned_abs() as usize;
    let shared = shared(multiprocessors);
    let own = function(device, module, name, 0)?.shared_size_bytes().map_err(|e| failed(name, e))?;
    if ask(TOGETHER)? == 0 || ask(SHARED)? - own < shared.cast_signed() {
        return Ok(0);
    }
    let each = function(device, module, name, shared)?
        .occupancy_max_active_blocks_per_multiprocessor(threads, shared as usize, None)
        .map_err(|e| failed(name, e))?;
    Ok(if each == 0 { 0 } else { multiprocessors })
}

/// Queues a kernel.
///
/// The arguments must be what the kernel's source declares, the addresses those of tensors that live as long as
/// this call: callers are the wrappers of this module's siblings, one for each kernel.
pub(crate) fn launch(device: &CudaDevice, module: &str, name: &'static str, shape: Shape, args: &[Arg]) -> Result<()> {
    let (x, y, z) = shape.grid;
    if x * y * z == 0 {
        return Ok(());
    }
    let size = |n: usize| u32::try_from(n).map_err(|_| ModelError::invalid(format!("{name}: a batch is too large")));
    let config = LaunchConfig {
        grid_dim: (size(x)?, size(y)?, size(z)?),
        block_dim: (shape.block.0, shape.block.1, 1),
        shared_mem_bytes: shape.shared,
    };
    let function = function(device, module, name, shape.shared)?;
    let stream = record::stream(device);
    if shape.overlaps || shape.together {
        return timed(device, || name.to_owned(), || launch_with(&stream, &function, config, shape.together, args));
    }
    let mut builder = stream.launch_builder(&function);
    for arg in args {
        match arg {
            Arg::At(x) => builder.arg(x),
            Arg::Int(x) => builder.arg(x),
            Arg::Long(x) => builder.arg(x),
            Arg::Float(x) => builder.arg(x),
        };
    }
    // SAFETY: the arguments fit the kernel, see above
    timed(device, || name.to_owned(), || unsafe { builder.launch(config) }.map_err(|e| failed(name, e)))?;
    Ok(())
}

/// Overlapping its predecessor, or all blocks `together`.
fn launch_with(
    stream: &CudaStream,
    function: &CudaFunction,
    config: LaunchConfig,
    together: bool,
    args: &[Arg],
) -> Result<()> {
    let mut places: Vec<*mut std::ffi::c_void> = args
        .iter()
        .map(|arg| match arg {
            Arg::At(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Int(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Long(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Float(x) => std::ptr::from_ref(x).cast_mut().cast(),
        })
        .collect();
    stream.context().bind_to_thread().map_err(|e| failed("a kernel", e))?;
    // SAFETY: a union of plain numbers, for which zeros are valid
    let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
    let id = if together {
        value.cooperative = 1;
        sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE
    } else {
        value.programmaticStreamSerializationAllowed = 1;
        sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    };
    let mut attribute = sys::CUlaunchAttribute_st { id, pad: [0; 4], value };
    let config = sys::CUlaunchConfig_st {
        gridDimX: config.grid_dim.0,
        gridDimY: config.grid_dim.1,
        gridDimZ: config.grid_dim.2,
        blockDimX: config.block_dim.0,
        blockDimY: config.block_dim.1,
        blockDimZ: config.block_dim.2,
        sharedMemBytes: config.shared_mem_bytes,
        hStream: stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as in `launch`; the driver copies arguments and attributes before it returns
    unsafe {
        sys::cuLaunchKernelEx(&raw const config, function.cu_function(), places.as_mut_ptr(), std::ptr::null_mut())
    }
    .result()
    .map_err(|e| failed("a kernel", e))
}

/// The GPU that a tensor is on.
pub(crate) fn device_of(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => Err(ModelError::invalid("a GPU kernel got a tensor that is not on the GPU")),
    }
}

pub(crate) fn start<T>(slice: &CudaSlice<T>, device: &CudaDevice, offset: usize) -> u64 {
    let stream = device.cuda_stream();
    let (address, _guard) = slice.device_ptr(&stream);
    address + (offset * size_of::<T>()) as u64
}

/// Where a contiguous tensor begins.
pub(crate) fn at(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(ModelError::invalid("a GPU kernel got a tensor that is not on the GPU"));
    };
    if !layout.is_contiguous() {
        return Err(ModelError::invalid("a GPU kernel got a tensor that is not contiguous"));
    }
    let (device, offset) = (&storage.device, layout.start_offset());
    match &storage.slice {
        CudaStorageSlice::BF16(slice) => Ok(start(slice, device, offset)),
        CudaStorageSlice::F16(slice) => Ok(start(slice, device, offset)),
        CudaStorageSlice::F32(slice) => Ok(start(slice, device, offset)),
        CudaStorageSlice::F64(slice) => Ok(start(slice, device, offset)),
        CudaStorageSlice::U32(slice) => Ok(start(slice, device, offset)),
        CudaStorageSlice::I64(slice) => Ok(start(slice, device, offset)),
        _ => Err(ModelError::invalid("a GPU kernel got a tensor of another type")),
    }
}

/// [`at`] as an argument; refuses another type than `dtype`.
pub(crate) fn arg(tensor: &Tensor, dtype: DType) -> Result<Arg> {
    if tensor.dtype() != dtype {
        return Err(ModelError::invalid(format!("a GPU kernel for {dtype:?} got {:?}", tensor.dtype())));
    }
    Ok(Arg::At(at(tensor)?))
}

/// Memory for a result that a kernel writes completely.
pub(crate) fn fresh(shape: impl Into<candle_core::Shape>, dtype: DType, device: &CudaDevice) -> Result<Tensor> {
    // SAFETY: every caller's kernel writes all elements before anything reads them
    Ok(unsafe { Tensor::empty(shape, dtype, &Device::Cuda(device.clone())) }?)
}

/// One side of a product: `[rows, columns]` as stored, used transposed or not.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a>(pub(crate) &'a Tensor, pub(crate) bool);

/// `out = scale * lhs rhs + keep * out`, sides both bf16 or both f16, f32 sums, `out` in bf16 or f32.
pub(crate) fn product(out: &Tensor, lhs: Side, rhs: Side, scale: f32, keep: f32) -> Result<()> {
    let dims = |Side(tensor, transposed): Side| -> Result<(usize, usize)> {
        let (rows, columns) = tensor.dims2()?;
        if tensor.dtype() != lhs.0.dtype() {
            return Err(ModelError::invalid(format!("a GPU product of {:?} and {:?}", lhs.0.dtype(), tensor.dtype())));
        }
        Ok(if transposed { (columns, rows) } else { (rows, columns) })
    };
    let ((m, k), (k2, n)) = (dims(lhs)?, dims(rhs)?);
    if k != k2 || out.dims2()? != (m, n) {
        return Err(ModelError::invalid(format!("a GPU product of [{m}, {k}] and [{k2}, {n}] to {:?}", out.dims())));
    }
    let of = match lhs.0.dtype() {
        DType::BF16 => blas::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => blas::cudaDataType_t::CUDA_R_16F,
        other => return Err(ModelError::invalid(format!("a GPU product of {other:?}"))),
    };
    let to = match out.dtype() {
        DType::BF16 => blas::cudaDataType_t::CUDA_R_16BF,
        DType::F32 => blas::cudaDataType_t::CUDA_R_32F,
        other => return Err(ModelError::invalid(format!("a GPU product to {other:?}"))),
    };
    if m * n * k == 0 {
        return Ok(());
    }
    let int = |n: usize| i32::try_from(n).map_err(|_| ModelError::invalid("a GPU product is too large"));
    let turn = |transposed: bool| {
        if transposed { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N }
    };
    let device = device_of(out)?;
    let (a, b, c) = (at(rhs.0)?, at(lhs.0)?, at(out)?);
    device.cuda_stream().context().bind_to_thread().map_err(|e| failed("matrix product", e))?;
    // cuBLAS stores by columns: the transposed product of the transposed sides, which lie there already.
    // SAFETY: the three addresses are of live tensors with these sizes; `out` is written by this product alone
    timed(
        &device,
        || format!("product {m} x {n} x {k}"),
        || unsafe {
            cublas::result::gemm_ex(
                record::products(&device),
                turn(rhs.1),
                turn(lhs.1),
                int(n)?,
                int(m)?,
                int(k)?,
                std::ptr::from_ref(&scale).cast(),
                a as *const _,
                of,
                int(rhs.0.dim(1)?)?,
                b as *const _,
                of,
                int(lhs.0.dim(1)?)?,
                std::ptr::from_ref(&keep).cast(),
                c as *mut _,
                to,
                int(n)?,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
            .map_err(|e| failed("matrix product", e))
        },
    )
}
