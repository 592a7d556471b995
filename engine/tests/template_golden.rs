//! 52 public chat templates against what Python's jinja2 renders, and Python's meaning of the
//! language against cases of our own.

use std::path::Path;

use aios_engine::template::{KNOWN, RenderInput, Template, TemplateError, known};
use jiff::civil::DateTime;
use serde_json::Value;

const FUEL: u64 = 10_000_000;

fn testdata(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/templates").join(name);
    let text = std::fs::read_to_string(&path).expect("test data");
    serde_json::from_str(&text).expect("JSON")
}

fn now(text: &Value) -> DateTime {
    text.as_str().expect("a time").parse().expect("ISO 8601")
}

/// Renders without and with spellings: the text must not depend on them.
fn render(source: &str, input: &RenderInput) -> Result<String, TemplateError> {
    let template = Template::parse(source)?;
    let plain = template.render_unconfined(input, &[], FUEL).map(|rendered| rendered.text);
    let spellings = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "<|system|>"];
    let marked = template.render_unconfined(input, &spellings.map(str::to_owned), FUEL);
    let marked = marked.map(|rendered| rendered.text);
    if marked == plain {
        return plain;
    }
    Err(TemplateError::Child { message: format!("marked {marked:?}, plain {plain:?}") })
}

#[test]
fn public_templates_render_as_in_python() {
    let golden = testdata("templates.json");
    let mut failures = Vec::new();
    let mut cases = 0;
    for template in golden["templates"].as_array().expect("templates") {
        for case in template["cases"].as_array().expect("cases") {
            cases += 1;
            let name = case["conversation"].as_str().expect("a name");
            let mut input =
                RenderInput::new(golden["conversations"][name].clone(), now(&template["now"]));
            input.add_generation_prompt = case["add_generation_prompt"] == true;
            input.bos_token = template["bos_token"].as_str().map(str::to_owned);
            input.eos_token = template["eos_token"].as_str().map(str::to_owned);
            let rendered = render(template["template"].as_str().expect("a source"), &input);
            let agree = match (&rendered, case["text"].as_str()) {
                (Ok(text), Some(expected)) => text == expected,
                (Err(TemplateError::Refused { message }), None) => case["error"] == *message,
                (Err(TemplateError::Child { .. }), None) => false,
                (Err(_), None) => !refusal(case["error"].as_str().expect("a reason")),
                _ => false,
            };
            if !agree {
                failures.push(format!("{} {name}: {rendered:?}\n  want {case}", template["name"]));
            }
        }
    }
    assert!(cases >= 400, "only {cases} cases");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Whether a reason is the words of a template, rather than of Python.
fn refusal(reason: &str) -> bool {
    reason != "runtime" && !reason.contains("is undefined")
}

/// `cases.json` was made by `make_cases.py` beside it, with Python's jinja2 set up as the hub's
/// library does; a case without a text is one that Python refuses.
#[test]
fn the_language_means_what_it_means_in_python() {
    let data = testdata("cases.json");
    let mut failures = Vec::new();
    for case in data["cases"].as_array().expect("cases") {
        let source = case["template"].as_str().expect("a source");
        let mut input = RenderInput::new(data["messages"].clone(), now(&data["now"]));
        input.tools = Some(data["tools"].clone());
        let rendered = render(source, &input);
        let agree = match (&rendered, case["text"].as_str()) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(TemplateError::Child { .. }), None) => false,
            (Err(_), None) => true,
            _ => false,
        };
        if !agree {
            failures.push(format!("{source}\n  is   {rendered:?}\n  want {}", case["text"]));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A format that is built in gives what the template of a model of that family gives.
#[test]
fn known_formats_are_those_of_public_templates() {
    let golden = testdata("templates.json");
    let public = [
        ("chatml", "gguf-smollm2", &["sys-multi"][..]),
        ("chatml", "gguf-qwen2.5-coder", &["sys-multi"]),
        ("gemma", "google-gemma-2-2b-it.jinja", &["user", "multi"]),
    ];
    for (name, of, conversations) in public {
        let all = golden["templates"].as_array().expect("templates");
        let template = all.iter().find(|template| template["name"] == of).expect("a template");
        for conversation in conversations {
            for begin in [false, true] {
                let (theirs, ours) = (template["template"].as_str(), known(name));
                let [theirs, ours] = [theirs, ours].map(|source| {
                    let mut input = RenderInput::new(
                        golden["conversations"][conversation].clone(),
                        now(&template["now"]),
                    );
                    input.add_generation_prompt = begin;
                    input.bos_token = template["bos_token"].as_str().map(str::to_owned);
                    render(source.expect("a source"), &input).expect("a text")
                });
                assert_eq!(ours, theirs, "{name} and {of}, {conversation}");
            }
        }
    }
}

#[test]
fn known_formats_take_instructions_and_turns() {
    let text = |name: &str, conversation: &str| {
        let golden = testdata("templates.json");
        let messages = golden["conversations"][conversation].clone();
        let mut input = RenderInput::new(messages, now(&Value::from("2025-01-01T00:00:00")));
        input.add_generation_prompt = true;
        input.bos_token = Some("<bos>".to_owned());
        render(known(name).expect("a format"), &input).expect("a text")
    };
    let question = "And <b>3*3</b> & \"quotes\"?\nSecond line";
    let gemma = format!(
        "<bos><start_of_turn>user\nYou are terse.\n\nWhat is 2+2?<end_of_turn>\n\
         <start_of_turn>model\n4<end_of_turn>\n<start_of_turn>user\n{question}<end_of_turn>\n\
         <start_of_turn>model\n"
    );
    assert_eq!(text("gemma", "sys-multi"), gemma);
    let turn = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
    let llama = format!(
        "<bos>{}You are terse.<|eot_id|>{}What is 2+2?<|eot_id|>{}4<|eot_id|>{}{question}\
         <|eot_id|>{}",
        turn("system"),
        turn("user"),
        turn("assistant"),
        turn("user"),
        turn("assistant")
    );
    assert_eq!(text("llama3", "sys-multi"), llama);
    let phi = format!(
        "<|system|>\nYou are terse.<|end|>\n<|user|>\nWhat is 2+2?<|end|>\n\
         <|assistant|>\n4<|end|>\n<|user|>\n{question}<|end|>\n<|assistant|>\n"
    );
    assert_eq!(text("phi3", "sys-multi"), phi);
    assert!(KNOWN.iter().all(|name| known(name).is_some()) && known("none").is_none());
}

#[test]
fn a_system_message_of_gemma_needs_a_turn_behind_it() {
    let messages = serde_json::json!([{"role": "system", "content": "Be brief."}]);
    let input = RenderInput::new(messages, now(&Value::from("2025-01-01T00:00:00")));
    let error = render(known("gemma").expect("a format"), &input).expect_err("a refusal");
    assert!(matches!(error, TemplateError::Refused { .. }), "{error}");
}
