//! How commands show their results: as a table or a document, once or repeatedly.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum, builder::FalseyValueParser};
use serde::Serialize;

use super::client::Failure;
use crate::clock::unix_now;

/// The flags of every command that shows something.
#[derive(Args, Clone, Debug)]
pub struct View {
    /// The output format; json and yaml print the documents of the API
    #[arg(short, long, value_enum, env = "WEIR_OUTPUT", default_value_t)]
    pub output: Format,
    /// Print no column headers
    #[arg(long, env = "WEIR_NO_HEADERS", value_parser = FalseyValueParser::new())]
    pub no_headers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// A table with more columns
    Wide,
    Json,
    Yaml,
}

#[derive(Args, Clone, Debug)]
pub struct Watch {
    /// Repeat the output, every 2 seconds unless an interval is given (500ms, 10s)
    #[arg(short, long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s")]
    #[arg(value_parser = interval)]
    pub watch: Option<Duration>,
}

/// What a rendering needs besides the document.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub wide: bool,
    pub headers: bool,
    /// Seconds since 1970.
    pub now: f64,
}

impl View {
    /// The text of `document`: rendered for people by `render`, or as JSON or YAML.
    pub fn text<T: Serialize>(&self, document: &T, render: impl Fn(&T, Style) -> String) -> anyhow::Result<String> {
        Ok(match self.output {
            Format::Table | Format::Wide => render(document, self.style()),
            Format::Json => serde_json::to_string_pretty(document).context("cannot write it as JSON")? + "\n",
            Format::Yaml => ended(serde_saphyr::to_string(document).context("cannot write it as YAML")?),
        })
    }

    pub fn is_for_people(&self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
    }

    fn style(&self) -> Style {
        Style { wide: self.output == Format::Wide, headers: !self.no_headers, now: unix_now() }
    }
}

/// Shows the result of `fetch`, repeatedly if `watch` is set. Returns the result that was shown
/// last.
pub async fn show<T: Serialize>(
    view: &View,
    watch: &Watch,
    fetch: impl AsyncFn() -> Result<T, Failure>,
    render: impl Fn(&T, Style) -> String,
) -> anyhow::Result<T> {
    let shown = fetch().await?;
    print(&view.text(&shown, &render)?)?;
    let Some(interval) = watch.watch else { return Ok(shown) };
    loop {
        tokio::time::sleep(interval).await;
        match fetch().await {
            Ok(shown) => print(&format!("{}{}", separator(view), view.text(&shown, &render)?))?,
            // The agent may be restarting; with --watch the user wants to see it come back.
            Err(failure) if failure.may_pass() => eprintln!("weir: {failure}"),
            Err(failure) => return Err(failure.into()),
        }
    }
}

/// The separator before each refresh: a terminal is cleared, a file gets an empty line.
fn separator(view: &View) -> &'static str {
    match view.output {
        Format::Json => "",
        Format::Yaml => "---\n",
        Format::Table | Format::Wide if io::stdout().is_terminal() => "\x1b[H\x1b[2J",
        Format::Table | Format::Wide => "\n",
    }
}

/// Writes to standard output at once.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// A duration: `2s`, `500ms`, `1m30s`, or a bare number of seconds.
pub fn interval(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    };
    match parsed {
        Ok(duration) if duration >= Duration::from_millis(10) => Ok(duration),
        Ok(_) => Err(format!("{text} is too short; 10ms is the least")),
        Err(error) => {
            Err(format!("{error}; write it like 2s, 500ms or 10m, behind the other arguments or as --flag=2s"))
        }
    }
}

fn ended(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    /// A document with this text as a key, as a value and in a list, as YAML and read again.
    fn again(text: &str) -> Value {
        let document = BTreeMap::from([(text, vec![text, "another"])]);
        serde_saphyr::from_str(&serde_saphyr::to_string(&document).unwrap()).unwrap()
    }

    #[test]
    fn text_that_looks_like_something_else_in_yaml_is_still_text() {
        for text in [
            "",
            " ",
            "~",
            "null",
            "yes",
            "No",
            "on",
            "true",
            "1",
            "-0.5",
            "1e3",
            "0x1f",
            "0o17",
            ".inf",
            ".nan",
            "1_000",
            "12:30",
            "2026-12-01",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "`a",
            "|",
            ">",
            "{a}",
            "[a]",
            "'a'",
            "\"a\"",
            "a\\b",
            "a\nb",
            "a\n",
            "\na",
            "\ta",
            "a ",
            " a",
            "---",
            "...",
            "? a",
            "<<",
            "=",
            "[::1]:80",
            "\u{85}",
            "\u{2028}",
            "\u{feff}a",
            "\u{7}",
            "é",
        ] {
            assert_eq!(again(text), serde_json::json!({ text: [text, "another"] }), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_yaml(text in "\\PC{0,20}|[ -~\n]{0,20}") {
            prop_assert_eq!(again(&text), serde_json::json!({ text.as_str(): [text.as_str(), "another"] }));
        }
    }
}
