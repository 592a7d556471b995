//! 52 public chat templates against what Python's jinja2 renders, and Python's meaning of the
//! language against cases of our own.

use std::path::Path;

use aios_engine::template::{RenderInput, Template, TemplateError};
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
