//! The golden vectors, against the reader and the writer of this crate.

use serde::Deserialize;
use serde_json::{Value, json};
use sortie_protocol::time::Timestamp;
use sortie_protocol::{CommandType, ControllerMessage, RunnerMessage};

/// 2024-01-01T00:00:00Z, which every canonical vector has.
fn epoch_of_vectors() -> Timestamp {
    Timestamp::from_unix(1_704_067_200, 0)
}

#[test]
fn frames_of_a_controller_come_back_as_they_were() {
    let vectors = include_str!("../vectors/controller.ndjson");
    for line in vectors.lines() {
        let message = ControllerMessage::parse(line.as_bytes()).unwrap();
        let written = String::from_utf8(message.to_line(epoch_of_vectors())).unwrap();
        assert_eq!(written, format!("{line}\n"));
    }
    for kind in ControllerMessage::TYPES {
        assert!(vectors.contains(&format!("{{\"type\":\"{kind}\"")), "no vector for {kind}");
    }
    for command in CommandType::ALL {
        assert!(
            vectors.contains(&format!("\"type\":\"{}\",\"timeout\"", command.name())),
            "no vector for {command:?}"
        );
    }
}

#[test]
fn frames_of_a_runner_come_back_as_they_were() {
    let vectors = include_str!("../vectors/runner.ndjson");
    for line in vectors.lines() {
        let message = RunnerMessage::parse(line.as_bytes()).unwrap();
        let written = String::from_utf8(message.to_line(epoch_of_vectors())).unwrap();
        assert_eq!(written, format!("{line}\n"));
    }
    for kind in RunnerMessage::TYPES {
        assert!(vectors.contains(&format!("{{\"type\":\"{kind}\"")), "no vector for {kind}");
    }
}

#[derive(Deserialize)]
struct Lenient {
    frame: String,
    canonical: Value,
}

#[test]
fn lenient_frames_mean_what_they_should() {
    for line in include_str!("../vectors/lenient.ndjson").lines() {
        let vector: Lenient = serde_json::from_str(line).unwrap();
        let message = ControllerMessage::parse(vector.frame.as_bytes()).unwrap();
        let mut written: Value = serde_json::from_slice(&message.to_line(epoch_of_vectors())).unwrap();
        assert_eq!(written["timestamp"].take(), json!("2024-01-01T00:00:00Z"));
        written.as_object_mut().unwrap().remove("timestamp");
        assert_eq!(written, vector.canonical);
    }
}

#[derive(Deserialize)]
struct RejectedVector {
    frame: String,
    code: String,
    command_id: String,
    message: String,
}

#[test]
fn rejected_frames_say_why() {
    for line in include_str!("../vectors/rejected.ndjson").lines() {
        let vector: RejectedVector = serde_json::from_str(line).unwrap();
        let rejected = ControllerMessage::parse(vector.frame.as_bytes()).unwrap_err();
        assert_eq!(rejected.code.as_str(), vector.code, "{}", vector.frame);
        assert_eq!(rejected.command_id, vector.command_id, "{}", vector.frame);
        assert!(rejected.message.contains(&vector.message), "{}: {}", vector.frame, rejected.message);
        assert!(!rejected.message.contains("77777"), "a value is echoed: {}", rejected.message);
    }
}
