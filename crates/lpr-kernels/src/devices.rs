//! Where to compute: the names of devices, which of them this build and machine have, and why
//! others are missing.

use burn::tensor::{Device, Tensor};
use std::{fmt, panic, str::FromStr};
use thiserror::Error;

/// What computes. A build has the CPU and those of the others whose feature it was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// The processor, with the kernels of this crate.
    Cpu,
    /// A GPU, or a program in its place, behind Vulkan, Metal or DirectX 12.
    Wgpu,
    /// A GPU of NVIDIA.
    Cuda,
}

impl Platform {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Wgpu, Self::Cuda];

    /// As names of devices begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }

    /// Whether this build can use it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// What its devices here call themselves, in the order of their numbers, or why one fails.
    /// Opens each.
    ///
    /// # Errors
    /// If this build cannot use it, or there is none.
    pub fn devices(self) -> Result<Vec<Result<String, DeviceError>>, DeviceError> {
        let found = |device: Device| {
            opened(&device)?;
            Ok(gpu_name(&device).unwrap_or_else(|| self.name().to_owned()))
        };
        Ok(self.enumerate()?.into_iter().map(found).collect())
    }

    /// What there is of it, not opened yet; at least one.
    fn enumerate(self) -> Result<Vec<Device>, DeviceError> {
        match self {
            Self::Cpu => Ok(vec![Device::flex()]),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => {
                let found = Device::enumerate(burn::tensor::DeviceType::Wgpu).into_vec();
                let reason = "no adapter answers through Vulkan, Metal or DirectX 12; install the \
                              GPU's driver, or Mesa's software Vulkan (on Debian \
                              mesa-vulkan-drivers and libvulkan1)";
                some(found, reason)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                crate::cuda::check_libraries()?;
                let found = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec();
                let reason = "NVIDIA's driver is installed and offers no GPU; see nvidia-smi and \
                              CUDA_VISIBLE_DEVICES";
                some(found, reason)
            }
            #[cfg(not(all(feature = "wgpu", feature = "cuda")))]
            _ => Err(DeviceError::NotCompiledIn(self)),
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn some(found: Vec<Device>, reason: &str) -> Result<Vec<Device>, DeviceError> {
    if found.is_empty() {
        return Err(DeviceError::Missing(reason.to_owned()));
    }
    Ok(found)
}

/// A device as configurations name it: a platform, and a number after a colon unless any will do.
///
/// Without a number `cuda` is the first GPU and `wgpu` the one that Burn holds for the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// What computes.
    pub platform: Platform,
    /// Which of its devices, from 0.
    pub index: Option<usize>,
}

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let platform = Platform::ALL.into_iter().find(|p| p.name() == name);
        let platform = platform.ok_or_else(unknown)?;
        let is_number =
            |n: &str| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
        if number.is_some_and(|n| platform == Platform::Cpu || !is_number(n)) {
            return Err(unknown());
        }
        let index = number.and_then(|n| n.parse().ok());
        Ok(Self { platform, index })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.platform.name())?;
        self.index.map_or(Ok(()), |index| write!(f, ":{index}"))
    }
}

/// A name that no device has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "is {0:?}; it must be \"cpu\", \"wgpu\", \"wgpu:N\", \"cuda\" or \"cuda:N\" with a number N"
)]
pub struct UnknownDevice(String);

/// Why a device cannot be used, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The program was built without its feature.
    #[error(
        "it is not compiled into this build; `cargo build --release --features {}` makes one with it",
        .0.name()
    )]
    NotCompiledIn(Platform),
    /// The machine does not have it, or not all it needs.
    #[error("{0}")]
    Missing(String),
    /// There are others.
    #[error("{found} of its kind are here, numbered from 0; `lpr-train doctor` lists them")]
    NoSuchNumber {
        /// How many there are.
        found: usize,
    },
    /// It is there and fails.
    #[error("it does not work: {0}")]
    Broken(String),
}

/// Opens a device, and no other in its place.
///
/// # Errors
/// If this build or machine does not have it, or it fails at a first small computation.
pub fn open(name: DeviceName) -> Result<Device, DeviceError> {
    let mut devices = name.platform.enumerate()?;
    let found = devices.len();
    let device = match name.index {
        None => preferred(name.platform, devices.swap_remove(0)),
        Some(index) if index < found => devices.swap_remove(index),
        Some(_) => return Err(DeviceError::NoSuchNumber { found }),
    };
    opened(&device)?;
    Ok(device)
}

/// The device of a platform where any will do; `first` is the first of them.
fn preferred(platform: Platform, first: Device) -> Device {
    match platform {
        #[cfg(feature = "wgpu")]
        Platform::Wgpu => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        _ => first,
    }
}

/// What an open device calls itself; `None` for the CPU.
pub fn gpu_name(device: &Device) -> Option<String> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    return device.identity().map(|identity| identity.name);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    {
        let _ = device;
        None
    }
}

/// Has the device add two numbers and read the sum: where a device cannot be opened, or not compile a
/// kernel, Burn panics.
fn opened(device: &Device) -> Result<(), DeviceError> {
    let add = || {
        let one = Tensor::<1>::ones([1], device);
        (one.clone() + one).try_into_vec_as::<f32>()
    };
    let reason = match panic::catch_unwind(panic::AssertUnwindSafe(add)) {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => format!("{error:?}"),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("it panics").to_owned()
        }
    };
    Err(DeviceError::Broken(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["cpu", "wgpu", "wgpu:0", "wgpu:12", "cuda", "cuda:1"] {
            let name: DeviceName = text.parse().expect("a device");
            assert_eq!(name.to_string(), text);
        }
        let bad = [
            "",
            "gpu",
            "cpu:0",
            "cuda:",
            "cuda:-1",
            "cuda:99999",
            "wgpu:x",
            "CPU",
        ];
        for text in bad {
            assert!(text.parse::<DeviceName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_cpu_is_there_and_nothing_stands_in_for_what_is_not_compiled_in() {
        let cpu = DeviceName {
            platform: Platform::Cpu,
            index: None,
        };
        assert_eq!(open(cpu).expect("the CPU"), Device::flex());
        for platform in Platform::ALL {
            let name = DeviceName {
                platform,
                index: Some(9999),
            };
            let error = open(name).expect_err("no machine has so many");
            let says_so = error == DeviceError::NotCompiledIn(platform);
            assert_eq!(says_so, !platform.is_compiled_in(), "{error}");
        }
    }
}
