//! The metadata of a synthetic file: the keys that its architecture calls for, a vocabulary of
//! bytes, and the stamp.

use aios_contract::Architecture;
use aios_engine::gguf::{Metadata, Value};

use super::Recipe;
use super::shapes::{Rope, Shape};

/// The key that marks a synthetic file, set to true.
pub const SYNTHETIC_KEY: &str = "aios.synthetic";

/// The pairs that the vocabulary merges.
const MERGES: [[&str; 2]; 8] = [
    ["Ġ", "t"],
    ["h", "e"],
    ["Ġt", "he"],
    ["i", "n"],
    ["Ġ", "a"],
    ["e", "r"],
    ["o", "n"],
    ["in", "g"],
];
/// Control tokens: start of text and end of text.
const CONTROL: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];
/// A conversation: each message behind its role, on lines of their own.
const TEMPLATE: &str = "{% for message in messages %}{{ message.role }}:\n{{ message.content }}\n\
                        {% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}";
/// The least vocabulary: bytes, merges and control tokens.
pub(super) const VOCAB_MIN: u32 = 256 + MERGES.len() as u32 + CONTROL.len() as u32;

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;
const UNUSED: i32 = 5;

/// The metadata of the file that `recipe` makes; `shape` is its shape with the changes asked for.
pub(super) fn metadata(recipe: &Recipe, shape: &Shape) -> Metadata {
    let published = recipe.shape;
    let mut name = format!("synthetic-{}", published.label);
    if shape != published {
        name += &format!("-cut-to-{}-layers-{}-tokens", shape.layers, shape.vocab);
    }
    if let Some(function) = recipe.activation {
        name += &format!("-{}", function.name());
    }
    let mut data = Metadata::new();
    data.set("general.architecture", shape.architecture.name());
    data.set("general.name", name);
    data.set("general.file_type", recipe.quant.file_type());
    data.set("general.quantization_version", 2u32);
    data.set(SYNTHETIC_KEY, true);
    data.set("aios.synthetic.shape", published.name);
    data.set("aios.synthetic.quant", recipe.quant.name());
    data.set("aios.synthetic.seed", recipe.seed);
    data.set("aios.synthetic.published_layers", published.layers);
    data.set("aios.synthetic.published_vocab", published.vocab);
    set_size(&mut data, shape);
    if let Some(function) = recipe.activation {
        own(&mut data, shape)("hidden_activation", function.name().into());
    }
    set_rope(&mut data, shape);
    set_vocabulary(&mut data, shape.vocab);
    data
}

/// The setter for an architecture's own keys.
fn own<'a>(data: &'a mut Metadata, shape: &Shape) -> impl FnMut(&str, Value) + use<'a> {
    let prefix = shape.architecture.name();
    move |key, value| data.set(format!("{prefix}.{key}"), value)
}

fn set_size(data: &mut Metadata, shape: &Shape) {
    let mut set = own(data, shape);
    set("vocab_size", shape.vocab.into());
    set("context_length", shape.context.into());
    set("embedding_length", shape.d_model.into());
    set("block_count", shape.layers.into());
    set("feed_forward_length", shape.ffn_len.into());
    set("attention.head_count", shape.heads.into());
    set("attention.head_count_kv", shape.kv_heads.into());
    set("attention.key_length", shape.head_len.into());
    set("attention.value_length", shape.head_len.into());
    let epsilon = match shape.architecture {
        Architecture::Falcon => "attention.layer_norm_epsilon",
        _ => "attention.layer_norm_rms_epsilon",
    };
    set(epsilon, shape.norm_epsilon.into());
    if let Some(window) = shape.window {
        set("attention.sliding_window", window.into());
    }
}

fn set_rope(data: &mut Metadata, shape: &Shape) {
    let mut set = own(data, shape);
    set("rope.dimension_count", shape.head_len.into());
    set("rope.freq_base", shape.rope_base.into());
    if shape.architecture == Architecture::Gemma3 {
        set("rope.freq_base_swa", 10_000f32.into());
    }
    match shape.rope {
        // The factors of Llama 3 are a tensor, and no key speaks of them.
        Rope::Plain | Rope::Llama3 { .. } => {}
        Rope::Linear { factor } => {
            set("rope.scaling.type", "linear".into());
            set("rope.scaling.factor", factor.into());
        }
        Rope::LongRope { original_context } => {
            let original = f64::from(original_context);
            let factor = f64::from(shape.context) / original;
            let magnitude = (1.0 + libm::log(factor) / libm::log(original)).sqrt();
            set("rope.scaling.type", "longrope".into());
            set("rope.scaling.original_context_length", original_context.into());
            set("rope.scaling.attn_factor", (magnitude as f32).into());
        }
    }
}

/// A byte-level BPE vocabulary: every byte, a few merges, control tokens, and unused tokens up to
/// `vocab`.
fn set_vocabulary(data: &mut Metadata, vocab: u32) {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(MERGES.iter().map(|pair| pair.concat()));
    let control = tokens.len();
    tokens.extend(CONTROL.map(str::to_owned));
    let unused = tokens.len();
    tokens.extend((unused..vocab as usize).map(|id| format!("<unused{id}>")));
    let kind = |id: usize| match () {
        () if id < control => NORMAL,
        () if id < unused => CONTROL_TYPE,
        () => UNUSED,
    };
    let kinds: Vec<i32> = (0..tokens.len()).map(kind).collect();
    let merges: Vec<String> = MERGES.iter().map(|pair| pair.join(" ")).collect();
    data.set("tokenizer.ggml.model", "gpt2");
    data.set("tokenizer.ggml.pre", "gpt-2");
    data.set("tokenizer.ggml.tokens", tokens);
    data.set("tokenizer.ggml.token_type", kinds);
    data.set("tokenizer.ggml.merges", merges);
    data.set("tokenizer.ggml.bos_token_id", control as u32);
    data.set("tokenizer.ggml.eos_token_id", control as u32 + 1);
    data.set("tokenizer.ggml.add_bos_token", false);
    data.set("tokenizer.chat_template", TEMPLATE);
}

/// The character that stands for `byte` in a byte-level vocabulary: itself if it prints, else one
/// of those from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return byte.into();
    }
    let place = (0..byte).filter(|&b| !prints(b)).count();
    char::from_u32(0x100 + place as u32).expect("one of 68 letters")
}
