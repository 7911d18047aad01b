//! Parsing and printing of pipelines.

use super::{Hint, Pipeline, PipelineError, Registry, parser::Parser, show_value};
use toml::Value;

fn error(text: &str) -> PipelineError {
    text.parse::<Pipeline>().unwrap_err()
}

#[test]
fn rejects_deeply_nested_brackets() {
    let wrong = Pipeline::from_toml(&format!("step = {}", "[{a = ".repeat(10_000))).unwrap_err();
    assert_eq!(wrong.message, "more than 64 brackets are open");
    assert_eq!(wrong.at, 199..200);
    // Unmatched closing brackets, and brackets in strings and comments, are not counted.
    for part in ["[{a = ]", "[{ \"]\" = ", "[{a = [\"}]}\", ", "[ # ]\n"] {
        let wrong = Pipeline::from_toml(&format!("step = {}", part.repeat(10_000))).unwrap_err();
        assert_eq!(wrong.message, "more than 64 brackets are open", "{part}");
    }
    let many = "[[step]]\npass = \"safe\" # [\n".repeat(100);
    assert_eq!(Pipeline::from_toml(&many).unwrap().steps().len(), 100);
}

#[test]
fn round_trips_text_and_toml() {
    for text in [
        "",
        "safe",
        "safe{keep_functions=true},drop-dead",
        "(fold-bn,drop-noops)*,fold-bn{max_scale=100.0}",
        "fold-constants{max_growth=0.5}",
    ] {
        let pipeline: Pipeline = text.parse().unwrap();
        assert_eq!(pipeline.to_string(), text);
        let toml = pipeline.to_toml();
        if !text.is_empty() {
            assert_eq!(Pipeline::from_toml(&toml).unwrap().to_string(), text, "{toml}");
        }
    }
}

#[test]
fn options_of_a_preset_omit_passes() {
    let passes = |text: &str| -> Vec<&str> {
        text.parse::<Pipeline>().unwrap().passes().iter().map(|p| p.info().name).collect()
    };
    let all = passes("safe");
    assert!(all.contains(&"inline-functions") && passes("safe{keep_functions=false}") == all);
    let kept = passes("safe{keep_functions}");
    assert_eq!(kept.len() + 1, all.len());
    assert!(!kept.contains(&"inline-functions"));
    let e = error("safe{keep_function=true}");
    assert_eq!(e.message, "`safe` is a preset and has no option `keep_function`");
    assert_eq!(e.hint, Some(Hint::DidYouMean("keep_functions".into())));
    assert_eq!(error("safe{keep_functions=1}").message, "`safe`: `keep_functions` is true or false");
}

#[test]
fn ignores_spaces_and_line_breaks() {
    let pipeline: Pipeline = " ( fold-bn ,\n drop-noops )* , fold-bn { max_scale = 5e3 } ".parse().unwrap();
    assert_eq!(pipeline.to_string(), "(fold-bn,drop-noops)*,fold-bn{max_scale=5000.0}");
}

#[test]
fn locates_errors_and_suggests_names() {
    let text = "drop-noops,fold-bm{}";
    let e = error(text);
    assert_eq!((e.message.as_str(), e.at.clone()), ("there is no pass `fold-bm`", 11..18));
    assert_eq!(e.hint, Some(Hint::DidYouMean("fold-bn".into())));
    assert_eq!(e.underline(text), "  drop-noops,fold-bm{}\n             ^^^^^^^");
    let e = error("fold-bn{max_scal=3}");
    assert_eq!(e.message, "`fold-bn` has no option `max_scal`");
    assert_eq!(e.hint, Some(Hint::DidYouMean("max_scale".into())));
    assert!(error("fold-bn{max_scale=lots}").message.contains("invalid type: string \"lots\""));
}

#[test]
fn reports_errors_in_malformed_texts() {
    for text in [
        "(fold-bn",
        "fold-bn{",
        "fold-bn{max_scale",
        "fold-bn{max_scale=",
        "fold-bn{=3}",
        "(fold-bn)",
        "fold-bn,,",
        ",",
        ")",
        "fold-bn}",
        "fold-bn{max_scale=[1,",
        "fold-bn{max_scale=\"x}",
        "☃",
        "safe{x=1}",
    ] {
        let e = error(text);
        assert!(!e.message.is_empty() && !e.underline(text).is_empty(), "{text}");
    }
    assert_eq!(error(&"(".repeat(100_000)).message, "the nesting is too deep");
}

#[test]
fn a_single_value_is_a_list_of_one() {
    let text = "prune-heads{only=MatMul_1,ratio=0.5},quantize{except=[a,b]}";
    let pipeline: Pipeline = text.parse().unwrap();
    assert_eq!(pipeline.to_string(), text);
    let toml = "[[step]]\npass = \"sparsify\"\nonly = \"layer*\"\nratio = 0.5\n";
    assert_eq!(Pipeline::from_toml(toml).unwrap().to_string(), "sparsify{only=layer*,ratio=0.5}");
    assert_eq!(
        error("prune-heads{ratio=[0.5]}").message,
        "`prune-heads`: invalid type: sequence, expected a number"
    );
}

#[test]
fn quotes_words_that_look_like_numbers() {
    for text in ["obs", "12", "true", "a b", "", "layer*/conv", "it's"] {
        let shown = show_value(&Value::String(text.into()));
        let read = Parser::new(&shown, &Registry::EMPTY).value().unwrap();
        assert_eq!(read, Value::String(text.into()), "{shown}");
    }
}
