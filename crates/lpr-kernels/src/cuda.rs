//! What CUDA needs at run time, looked for before it is used: Burn panics where something is
//! missing.
#![expect(unsafe_code, reason = "asking whether a library can be loaded")]

use crate::devices::DeviceError;
use std::path::PathBuf;

/// Checks that the driver, the compiler NVRTC and the headers that kernels include are there.
///
/// # Errors
/// With what is missing and where it comes from.
pub(crate) fn check_libraries() -> Result<(), DeviceError> {
    let missing = |reason: &str| Err(DeviceError::Missing(reason.to_owned()));
    // SAFETY: the call tries to load the library under its usual names and lets go of it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return missing(
            "NVIDIA's driver (libcuda) is not found; install it, or in a container ask for the GPU",
        );
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return missing(
            "the compiler NVRTC (libnvrtc) is not found; install the CUDA toolkit and put its lib64 \
             into LD_LIBRARY_PATH (docs/gpu.md)",
        );
    }
    let Some(include) = include_folder() else {
        return missing(
            "the headers of CUDA are not found; install the CUDA toolkit and set CUDA_PATH to it \
             (docs/gpu.md)",
        );
    };
    for header in ["cuda_fp16.h", "cuda_bf16.h", "mma.h"] {
        if !include.join(header).is_file() {
            let reason = format!(
                "{header} is not in {}; set CUDA_PATH to a CUDA toolkit (docs/gpu.md)",
                include.display()
            );
            return Err(DeviceError::Missing(reason));
        }
    }
    Ok(())
}

/// Where cubecl tells NVRTC to look.
fn include_folder() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CUDA_PATH") {
        return Some(PathBuf::from(path).join("include"));
    }
    let usual = [
        ("/usr/local/cuda", "/usr/local/cuda"),
        ("/opt/cuda", "/opt/cuda"),
        ("/usr/bin/nvcc", "/usr"),
    ];
    let found = usual.iter().find(|(sign, _)| PathBuf::from(sign).exists());
    found.map(|(_, root)| PathBuf::from(root).join("include"))
}
