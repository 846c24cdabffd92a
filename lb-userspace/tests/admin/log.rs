//! The log of the real `weir agent`, of a start that fails: it needs no root, and says one line
//! before that.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
};

/// Starts an agent that warns of its damaged overrides, and then fails because its pin directory is
/// on no bpffs. `stream` makes the value of `JOURNAL_STREAM` from the file behind its standard
/// error.
fn logged(format: &str, stream: impl FnOnce(&fs::Metadata) -> Option<String>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let socket = at("agent.sock");
    let config =
        format!("version: 1\ninterfaces: [lo]\nadmin: {{ socket: {}, http: \"\" }}\nservices: []\n", socket.display());
    fs::write(at("weir.yaml"), config).unwrap();
    fs::create_dir(at("state")).unwrap();
    fs::write(at("state/overrides.json"), "damaged").unwrap();
    let log = File::create(at("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_clear().args(["agent", "--log-format", format]);
    for (flag, name) in [("--config", "weir.yaml"), ("--state-dir", "state"), ("--pin-dir", "pins")] {
        command.arg(flag).arg(at(name));
    }
    if let Some(stream) = stream(&log.metadata().unwrap()) {
        command.env("JOURNAL_STREAM", stream);
    }
    let status = command.stderr(log).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let text = fs::read_to_string(at("log")).unwrap();
    assert!(!Path::new(&socket).exists());
    let line = text.lines().find(|line| line.contains("the saved overrides are damaged, and not used"));
    line.unwrap_or_else(|| panic!("no warning of the overrides in {text}")).to_owned()
}

fn has_timestamp(format: &str, line: &str) -> bool {
    match format {
        "json" => serde_json::from_str::<serde_json::Value>(line).unwrap().get("timestamp").is_some(),
        _ => line.starts_with("ts="),
    }
}

#[test]
fn line_has_no_timestamp_when_journald_takes_it_and_one_when_somebody_else_does() {
    for format in ["logfmt", "json"] {
        let journald = logged(format, |file| Some(format!("{}:{}", file.dev(), file.ino())));
        assert!(!has_timestamp(format, &journald), "{journald}");
        let redirected = logged(format, |file| Some(format!("{}:{}", file.dev(), file.ino() + 1)));
        assert!(has_timestamp(format, &redirected), "{redirected}");
        let alone = logged(format, |_| None);
        assert!(has_timestamp(format, &alone), "{alone}");
    }
}
