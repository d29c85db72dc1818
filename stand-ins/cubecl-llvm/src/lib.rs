//! What `cubecl-cuda` names of `cubecl-llvm`, without LLVM.
//!
//! `cubecl-cuda` has two ways from a kernel to the GPU: through LLVM, and through CUDA C++, which
//! the driver's companion library NVRTC compiles. Both are always part of the program; the feature
//! `cuda-cpp` of `cubecl` makes the second the one that runs. The LLVM that the first needs is
//! fetched by a build script from a release page, so a build with nothing but package registries
//! fails. This crate has the names and types of the first way, and an error where it would begin.
//!
//! It does nothing for Burn's `cpu` and `rocm` backends, which have no other way than LLVM.

use cubecl_core::{
    Compiler,
    ir::{amd::GfxArch, nvidia::SmArch},
    prelude::KernelDefinition,
};
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::{compiler::CompilationError, kernel::BufferIOAttr};
use std::{ffi::c_char, fmt};

/// The assembly of NVIDIA GPUs.
pub mod nvptx {
    /// Its versions.
    pub mod ptx_version {
        use std::fmt;

        /// A version to ask LLVM for; there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest version that a driver reads, if LLVM is to write it.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What all targets of LLVM have in common.
pub mod shared {
    /// Features of a device that LLVM cannot express.
    pub mod lowered_features {
        /// A kind of GPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
        }

        /// Takes away what LLVM cannot express: called only where LLVM compiles.
        pub fn restrict_features(_: &mut cubecl_core::ir::DeviceProperties, _: GpuTarget) {}
    }
}

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs.
    Nvptx,
}

/// What the LLVM compiler is told.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Alignment of buffers on the processor.
    pub cpu_buffer_alignment: Option<u32>,
    /// An AMD GPU.
    pub arch: Option<GfxArch>,
    /// An NVIDIA GPU.
    pub sm_arch: Option<SmArch>,
    /// The version of the assembly.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether parameters lie in constant memory.
    pub grid_constants: bool,
}

/// A compiled kernel for an NVIDIA GPU.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its assembly.
    pub ptx: Vec<c_char>,
    /// The text it was made from.
    pub ir: String,
    /// Bytes of shared memory it needs.
    pub shared_memory_size: usize,
    /// What it does with each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// What the LLVM compiler returns.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// A kernel for the processor: never.
    Jit(std::convert::Infallible),
    /// A kernel for an NVIDIA GPU.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jit(never) => match *never {},
            Self::NvptxCode(module) => f.write_str(&module.ir),
        }
    }
}

/// The compiler, which compiles nothing.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What for.
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this program was built without LLVM and with `cubecl/cuda-cpp` off".into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
