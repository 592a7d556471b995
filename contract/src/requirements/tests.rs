//! Known models by hand, limits from both sides, hostile manifests, and that nothing unknown
//! lifts a tier.

use super::*;
use crate::{
    Architecture, AttentionConfig, BlockLayout, FfnConfig, FfnLayout, NormConfig, NormKind, Role,
    RopeConfig, RopePairing, RopeScaling, SlidingWindow, TensorName,
};

/// A model of these sizes: layers, KV heads, elements of a head, width, neurons.
fn model([layers, kv_heads, head_len, d_model, ffn_len]: [usize; 5]) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        layers,
        d_model,
        vocab: 1000,
        context: 8192,
        block: BlockLayout::Sequential,
        norm: NormConfig { kind: NormKind::Rms, epsilon: 1e-5 },
        attention: AttentionConfig {
            heads: kv_heads,
            kv_heads,
            key_len: head_len,
            value_len: head_len,
            scale: 0.125,
            fused_qkv: false,
            qk_norm: false,
            score_softcap: None,
            window: None,
        },
        rope: RopeConfig {
            dims: head_len,
            pairing: RopePairing::Adjacent,
            base: 1e4,
            local_base: None,
            scaling: RopeScaling::None,
            original_context: None,
        },
        ffn: FfnConfig { len: ffn_len, layout: FfnLayout::Gated, activation: ActivationFn::Silu },
        embedding_scale: None,
        logit_softcap: None,
    }
}

const SMOLLM2: [usize; 5] = [30, 3, 64, 576, 1536];
const QWEN_500M: [usize; 5] = [24, 2, 64, 896, 4864];
const QWEN_1500M: [usize; 5] = [28, 2, 128, 1536, 8960];
const GEMMA_270M: [usize; 5] = [18, 1, 256, 640, 2048];

fn gemma() -> ModelConfig {
    let mut gemma = model(GEMMA_270M);
    gemma.attention.window = Some(SlidingWindow { size: 512, global_period: 6 });
    gemma
}

fn verdicts(finding: &Finding) -> Vec<Verdict> {
    finding.measures.iter().map(|measure| measure.verdict).collect()
}

use Verdict::{Fail, Pass, Unknown};

#[test]
fn caches_of_known_models() {
    // Layers · KV heads · head · 4096 · 4, by hand.
    let known = [
        (model(SMOLLM2), 94_371_840, [Fail, Fail]),
        (model(QWEN_500M), 50_331_648, [Pass, Pass]),
        (model(QWEN_1500M), 117_440_512, [Fail, Pass]),
        // 3 global layers of 4096 positions and 15 of 512, each position 1024 bytes.
        (gemma(), (3 * 4096 + 15 * 512) * 1024, [Pass, Pass]),
    ];
    for (config, bytes, expected) in known {
        assert_eq!(kv_bytes(&config, KV_CONTEXT), bytes);
        let finding = r2(&config);
        assert_eq!(verdicts(&finding), expected);
        assert_eq!(finding.measures[0].value, Some(Value::Number(bytes as f64 / 1e6)));
    }
}

#[test]
fn activations_of_known_models() {
    for (sizes, bytes) in
        [(SMOLLM2, 14_592), (QWEN_500M, 42_496), (QWEN_1500M, 77_824), (GEMMA_270M, 18_944)]
    {
        assert_eq!(activation_bytes(&model(sizes)), bytes);
        assert_eq!(r4(&model(sizes)).verdict, Pass);
    }
}

#[test]
fn keys_and_values_of_different_sizes_and_windows_beyond_the_context() {
    let mut config = model([10, 2, 64, 512, 1024]);
    config.attention.value_len = 16;
    assert_eq!(kv_bytes(&config, 100), 10 * 100 * 2 * (64 + 16) * 2);
    config.attention.window = Some(SlidingWindow { size: 1000, global_period: 0 });
    assert_eq!(kv_bytes(&config, 100), 10 * 100 * 2 * (64 + 16) * 2);
    assert_eq!(kv_bytes(&config, 5000), 10 * 1000 * 2 * (64 + 16) * 2);
    assert_eq!(kv_bytes(&config, 0), 0);
}

#[test]
fn a_cache_at_the_limit_passes_and_one_above_does_not() {
    // A layer with one head of k elements and no values takes 4096 · 2 · k bytes, which are 64 MB
    // for k = 7812.5.
    let mut config = model([1, 1, 0, 512, 1024]);
    for key_len in 7700..7900usize {
        config.attention.key_len = key_len;
        let expected = if key_len <= 7812 { Pass } else { Fail };
        assert_eq!(r2(&config).verdict, expected, "{key_len}");
    }
    // Exactly 64 MB: 2000 layers of 2 heads of 1 + 1 elements of 2 bytes hold 4000 positions each.
    let mut exact = model([2000, 2, 1, 512, 1024]);
    exact.attention.window = Some(SlidingWindow { size: 4000, global_period: 0 });
    assert_eq!((kv_bytes(&exact, KV_CONTEXT), r2(&exact).verdict), (64_000_000, Pass));
    exact.layers += 1;
    assert_eq!(r2(&exact).verdict, Fail);
    for heads in 1..=5 {
        let expected = if heads <= 2 { Pass } else { Fail };
        assert_eq!(r2(&model([1, heads, 8, 512, 1024])).verdict, expected);
    }
}

#[test]
fn activations_at_the_limit_pass_and_those_above_do_not() {
    // (2·d + 4·f) · 2 = 200,000 is d + 2·f = 50,000.
    for inner in (0..=25_000).step_by(125) {
        let at = 50_000 - 2 * inner;
        assert_eq!(activation_bytes(&model([1, 1, 1, at, inner])), 200_000);
        assert_eq!(r4(&model([1, 1, 1, at, inner])).verdict, Pass);
        assert_eq!(r4(&model([1, 1, 1, at + 1, inner])).verdict, Fail);
        assert_eq!(r4(&model([1, 1, 1, at, inner + 1])).verdict, Fail);
    }
}

#[test]
fn absurd_sizes_saturate_and_fail() {
    let absurd = model([1 << 20, usize::MAX, usize::MAX, usize::MAX, usize::MAX]);
    assert_eq!(kv_bytes(&absurd, usize::MAX), u64::MAX);
    assert_eq!((r2(&absurd).verdict, r4(&absurd).verdict), (Fail, Fail));
}

#[test]
fn zeros_count_only_with_the_right_function_and_enough_prompts() {
    let of =
        |prompts, zero_fraction| Some(Sparsity { prompts, zero_fraction, ..Sparsity::default() });
    let r1 = |function, sparsity: Option<Sparsity>| r1(function, sparsity.as_ref());
    for function in [Activation::Relu, Activation::ReluSquared] {
        assert_eq!(r1(function, of(1000, 0.70)).verdict, Pass);
        assert_eq!(r1(function, of(1000, 0.70_f64.next_down())).verdict, Fail);
        // What too few prompts say is neither for the model nor against it.
        assert_eq!(r1(function, of(999, 0.99)).verdict, Unknown);
        assert_eq!(r1(function, of(999, 0.01)).verdict, Unknown);
        assert_eq!(r1(function, None).verdict, Unknown);
        for nonsense in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
            assert_eq!(r1(function, of(5000, nonsense)).verdict, Unknown);
        }
    }
    for function in [ActivationFn::Silu, ActivationFn::GeluTanh, ActivationFn::GeluErf] {
        assert_eq!(r1(function.into(), None).verdict, Fail);
        assert_eq!(r1(function.into(), of(5000, 0.9)).verdict, Fail);
    }
}

#[test]
fn the_band_is_the_layers_whose_middle_lies_in_it() {
    for layers in 0..300usize {
        let inside = |layer: &usize| {
            let twice = 2 * layer + 1;
            10 * twice >= 8 * layers && 10 * twice <= 12 * layers
        };
        let expected: Vec<usize> = (0..layers).filter(inside).collect();
        assert_eq!(depth_band(layers).collect::<Vec<_>>(), expected, "{layers}");
    }
    assert_eq!((depth_band(30), depth_band(24)), (12..18, 10..14));
    assert_eq!((depth_band(28), depth_band(18)), (11..17, 7..11));
    assert!(depth_band(usize::MAX).start <= depth_band(usize::MAX).end);
}

fn alias(layer: u32, delta_norm: f64, delta_bytes: u64) -> Alias {
    let name = |layer| TensorName { role: Role::FfnUp, layer: Some(layer) };
    let (tensor, canonical) = (name(layer), name(4));
    Alias { tensor, canonical, canonical_norm: 10.0, delta_norm, whole_bytes: 1000, delta_bytes }
}

/// Ten layers, of which 4 and 5 are in the band.
fn aliases(stored_bytes: u64, aliases: Vec<Alias>) -> Probe<Aliases> {
    Probe::Present(Aliases { layers: 10, stored_bytes, aliases })
}

#[test]
fn aliases_are_judged_by_norm_and_by_bytes_in_the_band() {
    // 1000 of 1000 bytes are shared, less those of the delta.
    assert_eq!(r3(&aliases(0, vec![alias(5, 0.9, 300)])).verdict, Pass);
    assert_eq!(r3(&aliases(0, vec![alias(5, 0.9, 301)])).verdict, Fail);
    assert_eq!(r3(&aliases(0, vec![alias(5, 1.0, 300)])).verdict, Fail);
    assert_eq!(r3(&aliases(0, vec![alias(5, 1.0_f64.next_down(), 300)])).verdict, Pass);
    // A canonical tensor of the band counts as stored: 1000 of 2000 bytes are left.
    assert_eq!(r3(&aliases(1000, vec![alias(5, 0.0, 0)])).verdict, Fail);
    // Layers outside of the band do not count.
    assert_eq!(r3(&aliases(0, vec![alias(5, 0.0, 0), alias(9, 9.0, 9000)])).verdict, Pass);
    assert_eq!(r3(&aliases(1000, vec![alias(9, 0.0, 0)])).verdict, Fail);
    // A delta larger than what it saves.
    let Probe::Present(wasteful) = aliases(0, vec![alias(4, 0.0, 3000)]) else { unreachable!() };
    assert_eq!(wasteful.aliasing_ratio(), -2.0);
    // Norms that make no sense prove nothing.
    for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
        let finding = r3(&aliases(0, vec![alias(4, 0.0, 0), alias(5, nonsense, 0)]));
        assert_eq!(finding.verdict, Unknown);
    }
    assert_eq!(r3(&Probe::NotExamined).verdict, Unknown);
    assert_eq!(r3(&Probe::Absent).verdict, Fail);
    assert_eq!(r3(&Probe::Broken("it is".to_owned())).verdict, Fail);
}

const EXTENT: Extent = Extent { data: 100..400, weight_bytes: 250 };

fn manifest() -> Manifest {
    let block = |id: &str, access_frequency, tier, offset, size| {
        let id = id.to_owned();
        ManifestBlock { id, access_frequency, tier, offset, size }
    };
    Manifest {
        aios_contract_version: "1.0".to_owned(),
        blocks: vec![
            block("output.weight", 1.0, BlockTier::Hot, 100, 50),
            block("blk.0.ffn_up.weight[0..3]", 1.0, BlockTier::Warm, 150, 150),
            block("blk.0.ffn_up.weight[3..4]", 0.25, BlockTier::Stream, 350, 50),
        ],
    }
}

/// What `change` makes of a good manifest.
fn changed(change: impl FnOnce(&mut Manifest)) -> ManifestError {
    let mut manifest = manifest();
    change(&mut manifest);
    manifest.check(&EXTENT).expect_err("a planted fault")
}

#[test]
fn hostile_manifests_are_refused_for_what_is_wrong_with_them() {
    assert_eq!(manifest().check(&EXTENT), Ok(()));
    assert_eq!(changed(|m| m.aios_contract_version = "1.1".to_owned()), ManifestError::Version);
    assert_eq!(changed(|m| m.blocks.clear()), ManifestError::Empty);
    for id in ["", "[0..1]", "x[", "x[0]", "x[1..1]", "x[2..1]", "x[+1..2]", "x[..2]", "x[0..2]y"] {
        assert_eq!(changed(|m| m.blocks[1].id = id.to_owned()), ManifestError::Id { block: 1 });
    }
    let again = |m: &mut Manifest| m.blocks[2].id = m.blocks[0].id.clone();
    assert_eq!(changed(again), ManifestError::DuplicateId { block: 2 });
    for frequency in [-0.1, 1.1, f64::INFINITY, f64::NAN] {
        let error = changed(|m| m.blocks[0].access_frequency = frequency);
        assert!(matches!(error, ManifestError::Frequency { block: 0, .. }), "{error}");
    }
    let rising = |m: &mut Manifest| m.blocks[0].access_frequency = 0.5;
    assert_eq!(changed(rising), ManifestError::FrequencyOrder { block: 1 });
    let hotter = |m: &mut Manifest| m.blocks[2].tier = BlockTier::Hot;
    assert_eq!(changed(hotter), ManifestError::TierOrder { block: 2 });
    assert_eq!(changed(|m| m.blocks[1].size = 0), ManifestError::NoBytes { block: 1 });
    assert_eq!(changed(|m| m.blocks[0].offset = 99), ManifestError::Outside { block: 0 });
    assert_eq!(changed(|m| m.blocks[2].size = 51), ManifestError::Outside { block: 2 });
    assert_eq!(changed(|m| m.blocks[2].offset = u64::MAX), ManifestError::Outside { block: 2 });
    assert_eq!(changed(|m| m.blocks[1].offset = 149), ManifestError::Overlap { block: 1 });
    assert_eq!(changed(|m| m.blocks.swap(0, 1)), ManifestError::TierOrder { block: 1 });
    let incomplete = ManifestError::Incomplete { covered: 200, weights: 250 };
    assert_eq!(changed(|m| m.blocks.truncate(2)), incomplete);
}

#[test]
fn ids_name_tensors_and_rows() {
    let whole = BlockId { tensor: "output.weight", rows: None };
    assert_eq!(BlockId::parse("output.weight"), Some(whole));
    let rows = BlockId { tensor: "x", rows: Some(3..17) };
    assert_eq!(BlockId::parse("x[3..17]"), Some(rows));
    for tier in BlockTier::ALL {
        assert_eq!(BlockTier::from_name(tier.name()), Some(tier));
    }
    assert_eq!(BlockTier::from_name("hot"), None);
}

#[test]
fn a_manifest_and_a_quick_start_are_both_needed() {
    let good = Probe::Present(manifest());
    assert_eq!(r5(&good, Some(60.0_f64.next_down())).verdict, Pass);
    assert_eq!(r5(&good, Some(60.0)).verdict, Fail);
    for missing in [None, Some(f64::NAN), Some(-1.0)] {
        assert_eq!(r5(&good, missing).verdict, Unknown);
    }
    assert_eq!(r5(&Probe::NotExamined, Some(1.0)).verdict, Unknown);
    assert_eq!(r5(&Probe::Absent, None).verdict, Fail);
    let broken: Probe<Manifest> = Probe::from_result(Err::<Option<_>, _>(ManifestError::Empty));
    assert_eq!(r5(&broken, Some(1.0)).verdict, Fail);
}

fn findings(verdicts: [Verdict; 5]) -> Vec<Finding> {
    let finding = |(requirement, verdict)| Finding {
        requirement,
        verdict,
        measures: Vec::new(),
        evidence: String::new(),
    };
    Requirement::ALL.into_iter().zip(verdicts).map(finding).collect()
}

#[test]
fn tiers_of_every_combination_and_unknown_lifts_none() {
    let all = [Pass, Fail, Unknown];
    for code in 0..3usize.pow(5) {
        let verdicts = [1, 3, 9, 27, 81].map(|place| all[code / place % 3]);
        let [r1, r2, r3, r4, r5] = verdicts.map(|verdict| verdict == Pass);
        let expected = match () {
            () if r1 && r2 && r3 && r4 && r5 => Tier::NativePlus,
            () if r1 && r2 && r3 => Tier::Native,
            () if r1 && r2 => Tier::Optimized,
            () => Tier::Compatible,
        };
        assert_eq!(tier_of(&findings(verdicts)), expected);
        // Whatever is unknown might as well have failed.
        let failed = verdicts.map(|verdict| if verdict == Unknown { Fail } else { verdict });
        assert_eq!(tier_of(&findings(failed)), expected);
        // A finding that is left out is unknown, and a second one does not mend the first.
        let mut twice = findings(verdicts);
        twice.extend(findings([Pass; 5]));
        assert_eq!(tier_of(&twice), expected);
    }
    assert_eq!(tier_of(&findings([Pass; 5])[..4]), Tier::Native);
    assert_eq!(tier_of(&[]), Tier::Compatible);
}

#[test]
fn projections_are_stamped_and_rise_with_the_tier() {
    let projections = Tier::ALL.map(Tier::projection);
    assert!(projections.iter().all(|p| p.projection && p.low_percent < p.high_percent));
    let ranges = projections.map(|p| (p.low_percent, p.high_percent));
    assert_eq!(ranges, [(45, 55), (70, 80), (80, 88), (85, 92)]);
}

#[test]
fn bounds_refuse_what_is_not_a_number_or_of_the_other_kind() {
    for bound in [Bound::AtMost(1.0), Bound::AtLeast(1.0), Bound::Below(1.0), Bound::Holds] {
        assert!(!bound.admits(Value::Number(f64::NAN)));
        assert!(!bound.admits(Value::Flag(false)));
        assert_eq!(bound.admits(Value::Flag(true)), bound == Bound::Holds);
    }
    assert_eq!(Verdict::of_all([]), Unknown);
    assert_eq!(Verdict::of_all([Unknown, Fail, Pass]), Fail);
    assert_eq!(Verdict::of_all([Pass, Unknown]), Unknown);
    assert_eq!(Verdict::of_all([Pass, Pass]), Pass);
}
