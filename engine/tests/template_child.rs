//! Hostile templates in the rendering child: each ends in an error of its own kind, soon, and
//! without this process growing. Has its own `main`, because the child is this program again.

use std::time::{Duration, Instant};

use aios_engine::template::{Limits, RenderInput, Rendered, Template, TemplateError};
use serde_json::json;

/// The time an attack may take from start to error.
const PATIENCE: Duration = Duration::from_secs(4);

/// What this process may grow by while a template runs wild.
const GROWTH_MAX_BYTES: u64 = 192 << 20;

fn main() {
    aios_engine::template::run_child_if_asked();
    let tests: [(&str, fn()); 6] = [
        ("a_child_renders_what_this_process_renders", a_child_renders_what_this_process_renders),
        ("hostile_templates_end_in_an_error", hostile_templates_end_in_an_error),
        ("long_output_is_refused", long_output_is_refused),
        ("errors_come_through", errors_come_through),
        ("large_conversations_pass", large_conversations_pass),
        ("rendering_is_quick", rendering_is_quick),
    ];
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if std::env::args().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

fn input(content: &str) -> RenderInput {
    let now = jiff::civil::date(2026, 11, 22).at(12, 0, 0, 0);
    RenderInput::new(json!([{"role": "user", "content": content}]), now)
}

fn render(source: &str, input: &RenderInput, limits: &Limits) -> Result<Rendered, TemplateError> {
    Template::parse(source)?.render(input, &["<|im_end|>".to_owned()], limits)
}

fn resident_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib << 10
}

fn a_child_renders_what_this_process_renders() {
    let source = "{{ now }}{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}\
                  <|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}";
    let input = input("a <|im_end|> é \u{1}\u{10FFFD} \"\\");
    let inside = Template::parse(source).expect("parses").render_unconfined(
        &input,
        &["<|im_end|>".to_owned()],
        1_000_000,
    );
    let rendered = render(source, &input, &Limits::default());
    assert_eq!(rendered, inside);
    assert!(!rendered.expect("renders").plain.is_empty());
}

fn hostile_templates_end_in_an_error() {
    let attacks = [
        (
            "doubling",
            "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}\
                {% endfor %}",
        ),
        (
            "doubling list",
            "{% set ns = namespace(s=[1]) %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}\
                {% endfor %}",
        ),
        (
            "doubling tilde",
            "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}\
                {% endfor %}",
        ),
        (
            "replace",
            "{% set ns = namespace(s='xx') %}{% for i in range(64) %}\
                {% set ns.s = ns.s|replace('x', ns.s) %}{% endfor %}",
        ),
        (
            "nested loops",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                {% endfor %}{% endfor %}{% endfor %}",
        ),
        (
            "nested output",
            "{% for a in range(9999) %}{% for b in range(9999) %}\
                xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        ),
        (
            "repeat",
            "{% set ns = namespace(s=[]) %}{% for i in range(99) %}\
                {% set ns.s = ns.s + ['x' * (99999999 - i)] %}{% endfor %}",
        ),
        ("repeat too long", "{{ 'x' * 9999999999999 }}"),
        ("folded repeat", "{{ 'x' * 99999999 ~ 'y' * 99999999 ~ 'z' * 99999999 }}"),
        ("repeat list", "{{ ([1] * 99999999)|length }}{{ ([1] * 99999998)|tojson }}"),
        ("range", "{{ range(99999999999)|list|length }}"),
        ("format width", "{{ '%999999999d' % 1 }}{{ '%9999999999s' % 'x' }}"),
        ("format method", "{{ '{:>4000000000}'.format('x') }}"),
        ("indent", "{{ 'a\nb'|indent(4000000000) }}"),
        ("center", "{{ 'a'.center(4000000000) }}"),
        ("tojson indent", "{{ [[1]]|tojson(indent=4000000000) }}"),
        ("batch", "{{ [1]|batch(4000000000, 'x')|list|length }}"),
        ("slice filter", "{{ [1]|slice(4000000000)|list|length }}"),
        ("power", "{{ 10 ** 400 }}"),
        ("macro recursion", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}"),
        (
            "call recursion",
            "{% macro f() %}{% call f() %}{{ f() }}{% endcall %}{% endmacro %}{{ f() }}",
        ),
        ("loop recursion", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
        ("self block", "{% block a %}{{ self.a() }}{% endblock %}"),
        (
            "nested value",
            "{% set ns = namespace(s=[]) %}{% for a in range(99) %}{% for b in range(9999) %}\
                {% set ns.s = [ns.s] %}{% endfor %}{% endfor %}{{ ns.s }}",
        ),
        ("own parent", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns|tojson }}"),
        (
            "exponential macro",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% else %}\
                xxxxxxxxxx{% endif %}{% endmacro %}{{ f(60) }}",
        ),
        (
            "slow filter",
            "{% set s = 'x' * 50000000 %}{% for i in range(9999) %}\
                {% set y = s|upper|lower|title|replace('q', 'r') %}{% endfor %}",
        ),
        (
            "sort",
            "{% set s = 'x' * 9000000 %}{% for i in range(9999) %}\
                {% set y = s|list|sort|unique %}{% endfor %}",
        ),
    ];
    for (name, source) in attacks {
        let start = Instant::now();
        let rendered = render(source, &input("hi"), &Limits::default());
        let took = start.elapsed();
        let failure = rendered.map(|rendered| rendered.text.len()).expect_err(name);
        println!("  {name}: {failure} ({} ms)", took.as_millis());
        let typed =
            !matches!(failure, TemplateError::Child { .. } | TemplateError::ChildNotEnabled);
        assert!(typed, "{name}: {failure:?}");
        assert!(took < PATIENCE, "{name} took {took:?}");
    }
    // The peak counts everything since the process started, so it bounds the growth from above.
    let peak = resident_peak_bytes();
    assert!(peak < GROWTH_MAX_BYTES, "the parent grew to {peak} bytes");
}

fn long_output_is_refused() {
    let limits = Limits { output_bytes: 1000, ..Limits::default() };
    let length = |n: usize| {
        let source = format!("{{{{ 'x' * {n} }}}}");
        render(&source, &input("hi"), &limits).map(|rendered| rendered.text.len())
    };
    assert_eq!(length(1000), Ok(1000));
    assert_eq!(length(1001), Err(TemplateError::OutputTooLong { max_bytes: 1000 }));
}

fn errors_come_through() {
    let fail = |source: &str| render(source, &input("hi"), &Limits::default()).expect_err(source);
    let refused = TemplateError::Refused { message: "no <|im_end|>".to_owned() };
    assert_eq!(fail("{{ raise_exception('no <|im_end|>') }}"), refused);
    assert!(matches!(fail("\n{{ x.y }}"), TemplateError::Failed { line: 2, .. }));
    assert!(matches!(fail("\n\n{% if %}"), TemplateError::Syntax { line: 3, .. }));
    let limits = Limits { fuel: 100, ..Limits::default() };
    let starved = render("{% for i in range(999) %}{% endfor %}", &input("hi"), &limits);
    assert_eq!(starved, Err(TemplateError::OutOfFuel { fuel: 100 }));
    // A hundred million rounds take longer than a millisecond on any machine.
    let limits = Limits { fuel: 1 << 60, time: Duration::from_millis(1), ..Limits::default() };
    let rounds = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
    let late = render(rounds, &input("hi"), &limits);
    assert_eq!(late, Err(TemplateError::OutOfTime { limit_ms: 1 }));
    assert_eq!(Template::of_model(None).expect_err("none"), TemplateError::Missing);
}

fn large_conversations_pass() {
    let content = "word <|im_end|> ".repeat(100_000);
    let rendered = render("{{ messages[0].content|trim }}", &input(&content), &Limits::default());
    assert_eq!(rendered.expect("renders").text, content.trim_end());
}

/// A turn of the chat renders once; milliseconds are what a person does not notice.
fn rendering_is_quick() {
    let source = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let start = Instant::now();
            render(source, &input("hi"), &Limits::default()).expect("renders");
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("  median {} us", times[7].as_micros());
    assert!(times[0] < Duration::from_millis(200), "the fastest took {:?}", times[0]);
}
