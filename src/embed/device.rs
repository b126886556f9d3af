//! The device that embeds: what GPUs there are (asked of the driver at run time, whatever this was built with), and which one is taken.

use candle_core::{Device, DeviceLocation};
use cudarc::driver::CudaContext;

use super::Error;
use crate::config::DeviceChoice;

/// A GPU as its driver describes it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    pub memory_total_bytes: usize,
    pub memory_free_bytes: usize,
    /// Compute capability, such as 8.6.
    pub capability: String,
}

/// The GPUs of this machine; the error says why none can be asked for.
#[allow(unsafe_code)]
pub fn gpus() -> Result<Vec<Gpu>, String> {
    // SAFETY: only looks whether the driver's library can be opened.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("there is no CUDA driver (libcuda) on this machine".into());
    }
    let count = CudaContext::device_count().map_err(|e| format!("the CUDA driver does not answer: {e}"))?;
    (0..usize::try_from(count).unwrap_or(0))
        .map(|ordinal| {
            let read = || -> Result<Gpu, cudarc::driver::DriverError> {
                let context = CudaContext::new(ordinal)?;
                let (free, total) = context.mem_get_info()?;
                let (major, minor) = context.compute_capability()?;
                Ok(Gpu {
                    ordinal,
                    name: context.name()?,
                    memory_total_bytes: total,
                    memory_free_bytes: free,
                    capability: format!("{major}.{minor}"),
                })
            };
            read().map_err(|e| format!("GPU {ordinal} does not answer: {e}"))
        })
        .collect()
}

/// A device as the configuration names it.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The memory of a GPU that is free now.
pub(super) fn free_bytes(device: &Device) -> Result<usize, Error> {
    let DeviceLocation::Cuda { gpu_id } = device.location() else {
        return Err(Error::Device { device: name(device), reason: "it has no memory of its own".into() });
    };
    CudaContext::new(gpu_id).and_then(|context| context.mem_get_info()).map(|(free, _)| free).map_err(|e| {
        Error::Device { device: format!("cuda:{gpu_id}"), reason: format!("its free memory cannot be asked for: {e}") }
    })
}

/// The device for a choice, and why it is that one.
pub fn pick(choice: DeviceChoice) -> Result<(Device, String), Error> {
    let built = cfg!(feature = "cuda");
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, "embed.device is cpu".into())),
        DeviceChoice::Auto if !built => Ok((Device::Cpu, "this build has no CUDA kernels (feature cuda)".into())),
        DeviceChoice::Auto => match gpus() {
            Ok(gpus) if !gpus.is_empty() => {
                let best = gpus.iter().max_by_key(|g| g.memory_free_bytes).map_or(0, |g| g.ordinal);
                match Device::new_cuda(best) {
                    Ok(device) => Ok((device, format!("GPU {best} has the most free memory"))),
                    Err(e) => Ok((Device::Cpu, format!("GPU {best} cannot be used: {e}"))),
                }
            }
            Ok(_) => Ok((Device::Cpu, "the CUDA driver knows no GPU".into())),
            Err(reason) => Ok((Device::Cpu, reason)),
        },
        DeviceChoice::Cuda(n) => {
            let failed = |reason: String| Error::Device { device: format!("cuda:{n}"), reason };
            if !built {
                return Err(failed("this build has no CUDA kernels; build it with --features cuda".into()));
            }
            gpus().map_err(failed)?;
            let device = Device::new_cuda(n).map_err(|e| failed(e.to_string()))?;
            Ok((device, format!("embed.device is cuda:{n}")))
        }
    }
}
