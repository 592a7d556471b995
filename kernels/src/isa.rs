//! Which instruction set the kernels run on, as a value: holding an [`Isa`] proves that this
//! processor has it. It is detected once and passed along; nothing in this crate asks again.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use crate::tiles::Amx;
use crate::tiles::Tiles;

/// An instruction set by name, whether this machine has it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IsaName {
    /// Plain Rust; runs everywhere and is the reference that the others must equal.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL; with VNNI where the processor has it.
    Avx512,
    /// AVX-512 with VNNI, and AMX for passes of many tokens.
    Amx,
}

impl IsaName {
    /// Every name, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Amx];

    /// The spelling on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

impl std::fmt::Display for IsaName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for IsaName {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        let known = Self::ALL.into_iter().find(|isa| isa.name() == name);
        known.ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

/// Why an instruction set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of [`IsaName::ALL`].
    #[error("unknown instruction set {0:?}; known are scalar, avx2, avx512, amx")]
    Unknown(String),
    /// This processor lacks it.
    #[error("this processor does not have {0}; leave --isa out to use the best it has")]
    Unsupported(IsaName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512<true>, Amx),
    /// Plain code with plain tiles.
    #[cfg(test)]
    Tiles(Scalar),
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    kind: Kind,
    /// How far ahead of their use products with one or two activation rows ask for weights, in
    /// bytes; 0 where the processor's own prefetching keeps up.
    ahead: usize,
}

/// What [`Isa::ahead`] is on this processor. On a Xeon with AVX-512 and two threads, weights in
/// memory are read at so many GB/s without and with it: Q4_K 17.6 and 24.9, Q6_K 15.8 and 22.5,
/// Q5_0 22.6 and 28.1, Q4_1 24.3 and 29.6; 1 and 4.5 KB give less. On Zen 4 any distance costs
/// speed; on Zen 5 tokens of four models take 0.88 to 0.97 of the time without.
#[cfg(target_arch = "x86_64")]
fn ahead() -> usize {
    // A virtual machine takes tens of microseconds for the instruction.
    static AHEAD: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *AHEAD.get_or_init(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        let signature = std::arch::x86_64::__cpuid(1).eax;
        match &vendor[..] {
            b"GenuineIntel" => 2048,
            b"AuthenticAMD" if family(signature) >= ZEN_5 => 4096,
            _ => 0,
        }
    })
}

/// AMD's family of Zen 5.
#[cfg(target_arch = "x86_64")]
const ZEN_5: u32 = 0x1a;

/// A processor's family by its signature, which CPUID gives.
#[cfg(target_arch = "x86_64")]
const fn family(signature: u32) -> u32 {
    let base = signature >> 8 & 0xf;
    if base == 0xf { base + (signature >> 20 & 0xff) } else { base }
}

#[cfg(target_arch = "x86_64")]
fn amx() -> Option<Kind> {
    Some(Kind::Amx(Avx512::<true>::detect()?, Amx::detect()?))
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        let best = IsaName::ALL.into_iter().rev().find_map(|name| Self::request(name).ok());
        best.unwrap_or(Self::SCALAR)
    }

    /// The reference, which every processor has.
    pub const SCALAR: Self = Self { kind: Kind::Scalar(Scalar), ahead: 0 };

    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Scalar(_) => Self::SCALAR,
            #[cfg(test)]
            Kind::Tiles(_) => Self { kind, ahead: 0 },
            #[cfg(target_arch = "x86_64")]
            kind => Self { kind, ahead: ahead() },
        }
    }

    /// How far ahead of their use products with one or two activation rows ask for weights, in
    /// bytes; 0 if they do not.
    pub const fn ahead(self) -> usize {
        self.ahead
    }

    /// The same, asking for weights so many bytes ahead of their use.
    #[must_use]
    pub const fn with_ahead(self, bytes: usize) -> Self {
        Self { ahead: bytes, ..self }
    }

    /// The instruction set `name`.
    ///
    /// # Errors
    /// [`IsaError::Unsupported`] if this processor lacks it.
    pub fn request(name: IsaName) -> Result<Self, IsaError> {
        let kind = match name {
            IsaName::Scalar => Some(Kind::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx2 => Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "x86_64")]
            IsaName::Avx512 => (Avx512::<true>::detect().map(Kind::Avx512Vnni))
                .or_else(|| Avx512::<false>::detect().map(Kind::Avx512)),
            #[cfg(target_arch = "x86_64")]
            IsaName::Amx => amx(),
            #[cfg(not(target_arch = "x86_64"))]
            IsaName::Avx2 | IsaName::Avx512 | IsaName::Amx => None,
        };
        kind.map(Self::of).ok_or(IsaError::Unsupported(name))
    }

    /// Every instruction set that this processor has, slowest first. Where AVX-512 comes with
    /// VNNI, the variant without it is listed too, so that tests can compare them.
    pub fn available() -> Vec<Self> {
        let vectors: &[Option<Kind>] = &[
            #[cfg(test)]
            Some(Kind::Tiles(Scalar)),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Kind::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512::<false>::detect().map(Kind::Avx512),
            #[cfg(target_arch = "x86_64")]
            Avx512::<true>::detect().map(Kind::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            amx(),
        ];
        std::iter::once(Self::SCALAR)
            .chain(vectors.iter().flatten().copied().map(Self::of))
            .collect()
    }

    /// Its name.
    pub const fn name(self) -> IsaName {
        match self.kind {
            Kind::Scalar(_) => IsaName::Scalar,
            #[cfg(test)]
            Kind::Tiles(_) => IsaName::Scalar,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => IsaName::Avx2,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) | Kind::Avx512Vnni(_) => IsaName::Avx512,
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(..) => IsaName::Amx,
        }
    }

    /// The name with its extensions, for reports: `avx512+vnni`.
    pub const fn description(self) -> &'static str {
        match self.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni(_) => "avx512+vnni",
            _ => self.name().name(),
        }
    }

    /// The most activation rows that a product of panels takes at once.
    pub(crate) const fn columns(self) -> usize {
        match self.kind {
            Kind::Scalar(_) => Scalar::COLUMNS,
            #[cfg(test)]
            Kind::Tiles(_) => Scalar::COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => Avx2::COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => Avx512::<false>::COLUMNS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni(_) | Kind::Amx(..) => Avx512::<true>::COLUMNS,
        }
    }

    /// What multiplies tiles, if anything does.
    #[inline(always)]
    pub(crate) const fn tiles(self) -> Option<Tiles> {
        match self.kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx(_, amx) => Some(Tiles::Amx(amx)),
            #[cfg(test)]
            Kind::Tiles(_) => Some(Tiles::Plain),
            _ => None,
        }
    }

    /// Runs `op` compiled for this instruction set.
    #[inline]
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self.kind {
            Kind::Scalar(simd) => op.run(simd),
            #[cfg(test)]
            Kind::Tiles(simd) => op.run(simd),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni(simd) | Kind::Amx(simd, _) => simd.vectorize(op),
        }
    }
}

/// A computation written once over [`Simd`]. `run` must be `#[inline(always)]`, and so must all
/// that it calls with the token, or the intrinsics do not inline.
pub(crate) trait Op {
    /// What it returns.
    type Output;

    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for name in IsaName::ALL {
            assert_eq!(name.name().parse(), Ok(name));
        }
        assert_eq!("neon".parse::<IsaName>(), Err(IsaError::Unknown("neon".to_owned())));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn families_are_told_from_signatures() {
        let [zen_4, zen_5, old] = [0x00a1_0f11, 0x00b0_0f21, 0x0000_06f2].map(family);
        assert_eq!((zen_4, zen_5, old), (0x19, ZEN_5, 6));
    }

    #[test]
    fn detection_agrees_with_what_is_available() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::SCALAR);
        assert_eq!(Isa::detect(), *available.last().expect("scalar at least"));
    }
}
