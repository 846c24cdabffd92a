//! The real `weir` against the real API servers, in front of a fake agent (agent.rs says why).

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::agent::{FakeAgent, snapshot};
use lb_userspace::view::types::Overall;

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_clear().arg("--socket").arg(socket).args(arguments);
    command
}

async fn weir(agent: &FakeAgent, arguments: &[&str]) -> Output {
    run(command(&agent.socket, arguments)).await
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_exits_with_ok_degraded_or_down() {
    for (state, expected) in [(Overall::Ok, 0), (Overall::Degraded, 1), (Overall::Down, 2)] {
        let mut snapshot = snapshot();
        snapshot.status.state = state;
        let agent = FakeAgent::start(snapshot).await;
        for arguments in [&["status"][..], &["status", "-o", "json"]] {
            let output = weir(&agent, arguments).await;
            assert_eq!(code(&output), Some(expected), "{arguments:?}: {}", stderr(&output));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_does_not_run_is_told_from_one_that_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let missing = run(command(&socket, &["get", "services"])).await;
    assert_eq!(code(&missing), Some(1));
    assert!(stderr(&missing).contains("isn't running") && stderr(&missing).contains("there is no"));
    assert!(stderr(&missing).contains("systemctl start weir"));

    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let dead = run(command(&socket, &["status"])).await;
    assert_eq!(code(&dead), Some(2));
    assert!(stderr(&dead).contains("killed"), "{}", stderr(&dead));
    assert_eq!(code(&run(command(&socket, &["diff"])).await), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_is_a_table_and_valid_json_and_yaml() {
    let agent = FakeAgent::start(snapshot()).await;
    for (list, first_header) in [
        ("services", "NAMESPACE"),
        ("backends", "SERVICE"),
        ("flows", "CLIENT"),
        ("drops", "SERVICE"),
        ("interfaces", "INTERFACE"),
    ] {
        let table = weir(&agent, &["get", list]).await;
        assert_eq!(code(&table), Some(0), "{list}: {}", stderr(&table));
        let lines = stdout(&table).lines().count();
        assert!(stdout(&table).starts_with(first_header), "{list}: {}", stdout(&table));
        let bare = weir(&agent, &["get", list, "--no-headers"]).await;
        assert_eq!(stdout(&bare).lines().count(), lines - 1);

        let json = weir(&agent, &["get", list, "-o", "json"]).await;
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json.as_array().unwrap().len(), lines - 1, "{list}");
        let yaml = weir(&agent, &["get", list, "-o", "yaml"]).await;
        let yaml: serde_json::Value = serde_saphyr::from_str(&stdout(&yaml)).unwrap();
        assert_eq!(yaml, json, "{list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_service_is_not_found_and_the_known_ones_are_named() {
    let agent = FakeAgent::start(snapshot()).await;
    let output = weir(&agent, &["get", "backends", "wbe"]).await;
    assert_eq!(code(&output), Some(1));
    assert!(stderr(&output).contains("\"wbe\"") && stderr(&output).contains("there are: web"), "{}", stderr(&output));
    assert_eq!(stdout(&weir(&agent, &["get", "backends", "web", "--no-headers"]).await).lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_waits_until_no_connection_is_left() {
    let agent = FakeAgent::start(snapshot()).await;
    let output = weir(&agent, &["drain", "web/[fd02::11]:8080", "--wait", "--timeout", "30s"]).await;
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("web/[fd02::11]:8080 is draining now\n"), "{text}");
    assert!(text.contains("no connections are left"), "{text}");

    let back = weir(&agent, &["undrain", "web/[fd02::11]:8080", "--wait", "-o", "json"]).await;
    let back: serde_json::Value = serde_json::from_slice(&back.stdout).unwrap();
    assert_eq!(back["backends"][0]["admin"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_that_is_not_done_in_time_says_what_remains() {
    let mut snapshot = snapshot();
    snapshot.backends[0].connections_active = Some(1_000_000);
    let agent = FakeAgent::start(snapshot).await;
    let output = weir(&agent, &["drain", "web/10.2.0.11:8080", "--wait", "--timeout", "600ms"]).await;
    assert_eq!(code(&output), Some(1));
    assert!(stdout(&output).contains("connections of web/10.2.0.11:8080"), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_something_unknown_fails_with_a_reason() {
    let agent = FakeAgent::start(snapshot()).await;
    for arguments in [&["drain", "10.9.9.9"][..], &["undrain", "10.9.9.9"], &["set", "weight", "10.9.9.9", "2"]] {
        let output = weir(&agent, arguments).await;
        assert_eq!((code(&output), stdout(&output).as_str()), (Some(1), ""));
        assert!(stderr(&output).contains("no backend fits \"10.9.9.9\""), "{}", stderr(&output));
    }
    let neither = weir(&agent, &["set", "weight", "10.2.0.11"]).await;
    assert_eq!(code(&neither), Some(2), "neither a weight nor --reset");
}

#[tokio::test(flavor = "multi_thread")]
async fn weight_and_reload_say_what_they_did() {
    let agent = FakeAgent::start(snapshot()).await;
    let set = weir(&agent, &["set", "weight", "web/10.2.0.11:8080", "5"]).await;
    assert_eq!(stdout(&set), "weight of 10.2.0.11:8080 is 5\n");
    let reset = weir(&agent, &["set", "weight", "web/10.2.0.11:8080", "--reset"]).await;
    assert_eq!(stdout(&reset), "weight of 10.2.0.11:8080 is 1\n");
    assert_eq!(stdout(&weir(&agent, &["reload"]).await), "reloaded, accept loss: false\n");
    assert_eq!(stdout(&weir(&agent, &["reload", "--accept-loss"]).await), "reloaded, accept loss: true\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_reload_tells_a_judgement_by_its_exit_status_alone_and_prints_every_other_failure() {
    let agent = FakeAgent::start(snapshot()).await;
    let good = weir(&agent, &["reload", "--quiet"]).await;
    assert_eq!((code(&good), stdout(&good).as_str(), stderr(&good).as_str()), (Some(0), "", ""));

    let mut refusing = snapshot();
    refusing.status.config.errors = vec!["weir.yaml:3:1: port: must be 1 to 65535".to_owned()];
    let agent = FakeAgent::start(refusing).await;
    let bad = weir(&agent, &["reload", "-q"]).await;
    assert_eq!((code(&bad), stdout(&bad).as_str(), stderr(&bad).as_str()), (Some(1), "", ""));
    let loud = weir(&agent, &["reload"]).await;
    assert!(code(&loud) == Some(1) && stderr(&loud).contains("weir.yaml:3:1"), "{}", stderr(&loud));

    let socket = agent.stop().await;
    let gone = run(command(&socket, &["reload", "--quiet"])).await;
    assert!(code(&gone) == Some(1) && stderr(&gone).contains("isn't running"), "{}", stderr(&gone));
}

#[tokio::test]
async fn reload_of_a_process_that_is_no_agent_says_so() {
    let mut sleeping = Command::new("sleep").arg("60").spawn().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_clear().args(["reload", "--quiet", "--pid", &sleeping.id().to_string()]);
    let output = run(command).await;
    sleeping.kill().unwrap();
    sleeping.wait().unwrap();
    assert!(code(&output) == Some(1) && stderr(&output).contains("listens on no unix socket"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_exits_with_1_when_no_backend_would_be_chosen() {
    let agent = FakeAgent::start(snapshot()).await;
    let found = weir(&agent, &["lookup", "198.51.100.7:40000", "192.0.2.10:80"]).await;
    assert_eq!(code(&found), Some(0));
    assert!(stdout(&found).contains("10.2.0.11:8080"));
    let unserved = weir(&agent, &["lookup", "198.51.100.7:40000", "192.0.2.10:81"]).await;
    assert_eq!(code(&unserved), Some(1));
    assert!(stdout(&unserved).contains("port not served"));
    let mixed = weir(&agent, &["lookup", "198.51.100.7:40000", "[2001:db8::10]:80"]).await;
    assert!(code(&mixed) == Some(1) && stderr(&mixed).contains("different families"), "{}", stderr(&mixed));
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_tells_what_fits_a_line_each_and_how_many_were_left_out() {
    let agent = FakeAgent::start(snapshot()).await;
    let output = weir(&agent, &["trace", "--vip", "192.0.2.10", "--count", "2"]).await;
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("198.51.100.7:40000 -> 192.0.2.10:80 SYN"), "{text}");
    assert!(lines[1].contains("drop: no_route"), "{text}");
    assert!(stderr(&output).contains("2 decisions told, at least 4 left out"), "{}", stderr(&output));

    let json = weir(&agent, &["trace", "--drops-only", "--count", "1", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["src"], "198.51.100.8:40000");
    let timed = weir(&agent, &["trace", "--client", "[2001:db8:1::7]:40000", "--for", "300ms"]).await;
    assert_eq!((code(&timed), stdout(&timed).lines().count()), (Some(0), 1), "{}", stderr(&timed));
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_ends_with_a_summary_when_it_is_interrupted_and_with_a_reason_when_the_agent_stops() {
    let agent = FakeAgent::start(snapshot()).await;
    let started = |mut command: Command| {
        tokio::task::spawn_blocking(move || {
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // All that the agent has to tell.
            lines.by_ref().take(3).for_each(|line| drop(line.unwrap()));
            child
        })
    };
    let ended = |child: std::process::Child| tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
    let child = started(command(&agent.socket, &["trace"])).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = ended(child).await.unwrap();
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("3 decisions told"), "{}", stderr(&output));

    let child = started(command(&agent.socket, &["trace"])).await.unwrap();
    agent.stop().await;
    let output = ended(child).await.unwrap();
    assert_eq!(code(&output), Some(1));
    assert!(stderr(&output).contains("has stopped"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_says_equal_with_0() {
    let agent = FakeAgent::start(snapshot()).await;
    let output = weir(&agent, &["diff"]).await;
    assert_eq!(code(&output), Some(0));
    assert!(stdout(&output).starts_with("equal"));
    assert_eq!(stdout(&weir(&agent, &["diff", "-o", "json"]).await), "[]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_it_again_and_ends_quietly_when_nobody_reads() {
    let agent = FakeAgent::start(snapshot()).await;
    let mut watching = command(&agent.socket, &["get", "backends", "--watch", "50ms"]);
    let (headers, output) = tokio::task::spawn_blocking(move || {
        let mut child = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let headers = lines.filter(|line| line.starts_with("SERVICE")).take(2).count();
        // The pipe is closed by now.
        (headers, child.wait_with_output().unwrap())
    })
    .await
    .unwrap();
    assert_eq!(headers, 2);
    assert_eq!((code(&output), stderr(&output).as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_can_come_from_the_environment() {
    let agent = FakeAgent::start(snapshot()).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.env_clear().env("WEIR_SOCKET", &agent.socket).env("WEIR_OUTPUT", "json").args(["get", "services"]);
    let output = run(command).await;
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok(), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_agent_takes_its_socket_with_it() {
    let agent = FakeAgent::start(snapshot()).await;
    assert_eq!(code(&weir(&agent, &["status"]).await), Some(0));
    let socket = agent.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn configuration_commands_need_no_agent() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, file) = (directory.path().join("none.sock"), directory.path().join("weir.yaml"));
    let example = run(command(&socket, &["config", "init"])).await;
    assert_eq!(code(&example), Some(0));
    std::fs::write(&file, &example.stdout).unwrap();
    let good = run(command(&socket, &["config", "check", file.to_str().unwrap()])).await;
    assert_eq!(code(&good), Some(0), "{}", stderr(&good));

    std::fs::write(&file, "version: 1\nservices: 3\nfoo: 1\n").unwrap();
    let bad = run(command(&socket, &["config", "check", file.to_str().unwrap()])).await;
    assert_eq!(code(&bad), Some(1));
    assert!(stderr(&bad).contains("weir.yaml:2") && stderr(&bad).contains("weir.yaml:3"), "{}", stderr(&bad));

    let schema = run(command(&socket, &["config", "schema"])).await;
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["services"].is_object());
}

#[tokio::test]
async fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(command(Path::new("/nonexistent"), &["completion", shell])).await;
        assert!(code(&output) == Some(0) && stdout(&output).contains("undrain"), "{shell}");
    }
}
