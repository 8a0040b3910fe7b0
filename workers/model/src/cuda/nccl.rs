//! Sums and copies from GPU to GPU by NCCL.
//!
//! The library is opened when it is first wanted, so a machine with one GPU needs none. Its calls are queued on the
//! device's one stream. A kernel of NCCL waits for the other ranks for ever, so a thread watches them over the other
//! link and ends the kernels once one is lost.
#![allow(unsafe_code)] // calls into a C library; each says why it is sound

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use candle_core::{CudaDevice, DType, Tensor};
use libloading::Library;
use s3_collective::Collective;

use super::launch::{at, fresh};
use crate::error::{ModelError, Result};

/// Names under which the library is installed.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// `ncclDataType_t`: float32 and bfloat16.
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
/// `ncclRedOp_t`: sum.
const SUM: c_int = 0;
/// How often the other ranks are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// `ncclUniqueId`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Id([u8; 128]);

type Comm = *mut c_void;
type Stream = *mut c_void;

/// The functions that are called, from `nccl.h`; their meaning has not changed since version 2.4.
struct Api {
    get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Comm, Stream) -> c_int,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

impl Api {
    fn open() -> std::result::Result<Self, String> {
        let mut why = String::new();
        // SAFETY: the library's initialisers do nothing but set up the library
        let found = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.map_err(|e| why = e.to_string()).ok());
        let library = found.ok_or_else(|| {
            format!("NCCL is not there ({why}); install libnccl (the image has it), or use one GPU a replica")
        })?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the type is the function's in `nccl.h`; the library lives as long as the pointer
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                    .map_err(|e| format!("NCCL lacks {}: {e}; install version 2.18 or later", $name))?
            };
        }
        Ok(Self {
            get_unique_id: symbol!("ncclGetUniqueId"),
            comm_init_rank: symbol!("ncclCommInitRank"),
            comm_abort: symbol!("ncclCommAbort"),
            comm_destroy: symbol!("ncclCommDestroy"),
            reduce: symbol!("ncclReduce"),
            broadcast: symbol!("ncclBroadcast"),
            group_start: symbol!("ncclGroupStart"),
            group_end: symbol!("ncclGroupEnd"),
            error_string: symbol!("ncclGetErrorString"),
            _library: library,
        })
    }

    fn get() -> Result<&'static Self> {
        static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
        API.get_or_init(Self::open).as_ref().map_err(|why| ModelError::invalid(why.clone()))
    }

    fn check(&self, what: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: returns a constant, zero-terminated text for every code
        let text = unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy();
        Err(ModelError::Nccl(format!("{what}: {text} ({code})")))
    }
}

/// One rank's GPU among the others'.
pub(crate) struct Nccl {
    api: &'static Api,
    /// Null once it was aborted.
    comm: Arc<AtomicPtr<c_void>>,
    device: CudaDevice,
    rank: usize,
    collective: Arc<dyn Collective>,
    over: Arc<AtomicBool>,
}

impl Nccl {
    /// Meets the other ranks' GPUs; all ranks call it together.
    pub(crate) fn join(collective: Arc<dyn Collective>, device: &CudaDevice) -> Result<Self> {
        // Every rank says whether it can, so that none waits for one that cannot.
        let api = Api::get();
        let words = match &api {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let all = collective.all_gather(words.into_bytes())?;
        let api = api?;
        if let Some((rank, why)) = all.iter().enumerate().find(|(_, why)| !why.is_empty()) {
            return Err(ModelError::invalid(format!("replica {rank}: {}", String::from_utf8_lossy(why))));
        }
        let mut id = Id([0; 128]);
        if collective.rank() == 0 {
            // SAFETY: writes the 128 bytes
            api.check("making an id", unsafe { (api.get_unique_id)(&raw mut id) })?;
        }
        let told = collective.broadcast(0, id.0.to_vec())?;
        id.0 = told.try_into().map_err(|_| ModelError::invalid("an id of NCCL has another length; run one version"))?;
        device.cuda_stream().context().bind_to_thread().map_err(|e| super::launch::failed("NCCL", e))?;
        let (mut comm, size) = (std::ptr::null_mut(), collective.size() as c_int);
        // SAFETY: the context of the rank's GPU is this thread's
        let code = unsafe { (api.comm_init_rank)(&raw mut comm, size, id, collective.rank() as c_int) };
        api.check("joining the other GPUs", code)?;
        let (comm, over) = (Arc::new(AtomicPtr::new(comm)), Arc::new(AtomicBool::new(false)));
        let watched = (collective.clone(), comm.clone(), over.clone());
        std::thread::Builder::new()
            .name("nccl-watch".into())
            .spawn(move || watch(api, watched.0.as_ref(), &watched.1, &watched.2))
            .map_err(|e| ModelError::invalid(format!("no thread to watch the other GPUs: {e}")))?;
        Ok(Self { api, comm, device: device.clone(), rank: collective.rank(), collective, over })
    }

    /// The sum of every tensor (f32) at its owner; nothing at the others.
    pub(crate) fn reduce(&self, tensors: Vec<(Tensor, usize)>) -> Result<Vec<Option<Tensor>>> {
        let out = self.results(&tensors, |owner| owner == self.rank)?;
        self.group("a sum", || {
            for ((tensor, owner), out) in tensors.iter().zip(&out) {
                let (from, to) = (address(tensor)?, out.as_ref().map_or(Ok(std::ptr::null_mut()), address)?);
                let (count, kind, root) = (tensor.elem_count(), kind(tensor)?, *owner as c_int);
                // SAFETY: both are as long as said and live until the stream has passed; see the module's text
                let code = unsafe { (self.api.reduce)(from, to, count, kind, SUM, root, self.comm()?, self.stream()) };
                self.api.check("a sum", code)?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Every owner's tensor at all other ranks; nothing at the owner. What others pass says type and shape alone.
    pub(crate) fn broadcast(&self, tensors: Vec<(Tensor, usize)>) -> Result<Vec<Option<Tensor>>> {
        let out = self.results(&tensors, |owner| owner != self.rank)?;
        self.group("a copy", || {
            for ((tensor, owner), out) in tensors.iter().zip(&out) {
                let from = address(tensor)?;
                let to = out.as_ref().map_or(Ok(from), address)?;
                let (count, kind, root) = (tensor.elem_count(), kind(tensor)?, *owner as c_int);
                // SAFETY: as above; at the owner it is in place, which only reads
                let code = unsafe { (self.api.broadcast)(from, to, count, kind, root, self.comm()?, self.stream()) };
                self.api.check("a copy", code)?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn results(&self, tensors: &[(Tensor, usize)], wanted: impl Fn(usize) -> bool) -> Result<Vec<Option<Tensor>>> {
        let new = |(tensor, owner): &(Tensor, usize)| {
            wanted(*owner).then(|| fresh(tensor.shape(), tensor.dtype(), &self.device)).transpose()
        };
        tensors.iter().map(new).collect()
    }

    /// Queues several operations as one.
    fn group(&self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.device.cuda_stream().context().bind_to_thread().map_err(|e| super::launch::failed("NCCL", e))?;
        // SAFETY: begin and end stand on one thread
        self.api.check(what, unsafe { (self.api.group_start)() })?;
        let queued = work();
        // SAFETY: as above
        let ended = self.api.check(what, unsafe { (self.api.group_end)() });
        match self.collective.lost() {
            Some(lost) => Err(lost.into()),
            None => queued.and(ended),
        }
    }

    fn comm(&self) -> Result<Comm> {
        let comm = self.comm.load(Ordering::SeqCst);
        if !comm.is_null() {
            return Ok(comm);
        }
        let gone = || ModelError::Nccl("the link between the GPUs was ended".to_owned());
        Err(self.collective.lost().map_or_else(gone, ModelError::from))
    }

    fn stream(&self) -> Stream {
        self.device.cuda_stream().cu_stream().cast()
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let comm = self.comm.swap(std::ptr::null_mut(), Ordering::SeqCst);
        if comm.is_null() {
            return;
        }
        // One that is lost would be waited for.
        let end = if self.collective.lost().is_some() { self.api.comm_abort } else { self.api.comm_destroy };
        // SAFETY: the handle was taken, so nobody else uses it
        unsafe { end(comm) };
    }
}

/// Ends what waits for a rank that is gone.
fn watch(api: &Api, collective: &dyn Collective, comm: &AtomicPtr<c_void>, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        if collective.lost().is_some() {
            let comm = comm.swap(std::ptr::null_mut(), Ordering::SeqCst);
            if !comm.is_null() {
                // SAFETY: aborting is meant for another thread than the one that waits
                unsafe { (api.comm_abort)(comm) };
            }
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn kind(tensor: &Tensor) -> Result<c_int> {
    match tensor.dtype() {
        DType::F32 => Ok(FLOAT32),
        DType::BF16 => Ok(BFLOAT16),
        other => Err(ModelError::invalid(format!("tensors of {other:?} do not go from GPU to GPU"))),
    }
}

fn address(tensor: &Tensor) -> Result<*mut c_void> {
    Ok(at(tensor)? as *mut c_void)
}
