use serde_json::value::to_raw_value;
use sortie_protocol::Secret;
use sortie_protocol::command::exec::Exec;
use sortie_protocol::command::file_write::FileWrite;
use sortie_protocol::error::ErrorCode;

use super::*;

const PLANTED: &str = "hunter2-planted";

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).unwrap()
}

/// Each string field of a command, one at a time, set to the planted word: the fields that then show it.
fn shown_fields(kind: CommandType, fields: &[&str]) -> Vec<String> {
    let shows = |field: &&&str| {
        let object = raw(&json!({ **field: PLANTED }));
        params(kind, &object, false).to_string().contains(PLANTED)
    };
    fields.iter().filter(shows).map(|field| (*field).to_string()).collect()
}

#[test]
fn every_secret_of_every_command_is_left_out_by_its_type() {
    struct Json(&'static str);
    impl CommandVisitor for Json {
        type Output = bool;
        fn visit<C: CommandSpec + Default>(self) -> bool {
            serde_json::from_value::<C>(json!({ self.0: PLANTED })).is_ok()
        }
    }
    let secrets = ["sudo_password", "content", "stdin", "line", "block", "value"];
    let mut found = 0;
    for &kind in CommandType::ALL {
        for secret in secrets {
            // A field that a command does not have is passed over, and so is not shown either.
            assert!(kind.visit(Json(secret)), "{} {secret}", kind.name());
            assert_eq!(shown_fields(kind, &[secret]), Vec::<String>::new(), "{}", kind.name());
            let shown = params(kind, &raw(&json!({ secret: PLANTED })), false);
            found += usize::from(shown.to_string().contains(REDACTED));
        }
    }
    // Were the names wrong, nothing above would have been a secret at all.
    assert!(found >= 8, "only {found} of the fields are secrets");
}

#[test]
fn what_says_what_was_done_stays() {
    let exec = Exec::argv(["systemctl", "restart", "nginx"]).env("TOKEN", PLANTED).work_dir("/srv");
    let shown = params(CommandType::Exec, &to_raw_value(&exec).unwrap(), false);
    assert_eq!(shown["argv"], json!(["systemctl", "restart", "nginx"]));
    assert_eq!((&shown["env"], &shown["work_dir"]), (&json!({"TOKEN": REDACTED}), &json!("/srv")));

    let write = FileWrite::new("/etc/app.conf").content(PLANTED).mode(0o640);
    let shown = params(CommandType::FileWrite, &to_raw_value(&write).unwrap(), false);
    assert_eq!(shown, json!({"path": "/etc/app.conf", "content": REDACTED, "create": true, "mode": "0640"}));
}

#[test]
fn a_sensitive_command_shows_its_program_alone() {
    let sensitive = |object: &Value| params(CommandType::Exec, &raw(object), true);
    assert_eq!(sensitive(&json!({"argv": ["mysql", "-psecret"]})), json!({"argv": ["mysql", REDACTED]}));
    let with_args = sensitive(&json!({"command": "mysql", "args": ["-psecret"]}));
    assert_eq!(with_args, json!({"command": "mysql", "args": [REDACTED]}));
    assert_eq!(sensitive(&json!({"command": "mysql -psecret"})), json!({"command": REDACTED}));
}

#[test]
fn parameters_that_are_not_understood_are_not_told() {
    let object = raw(&json!({"argv": 7, "sudo_password": PLANTED}));
    let shown = params(CommandType::Exec, &object, false).to_string();
    assert!(shown.contains("no parameters of exec") && !shown.contains(PLANTED), "{shown}");
    let unknown = raw(&json!({"command": "true", "token": PLANTED}));
    assert_eq!(params(CommandType::Exec, &unknown, false), json!({"command": "true"}));
    let sent_by_go = RawValue::from_string("null".into()).unwrap();
    assert_eq!(params(CommandType::FileRead, &sent_by_go, false)["path"], "");
}

#[test]
fn a_long_string_is_cut_and_named_by_its_digest() {
    let line = format!("echo ż{}", "x".repeat(2 * LONGEST));
    let shown = params(CommandType::Exec, &raw(&json!({ "command": line })), false);
    let shown = shown["command"].as_str().unwrap();
    assert!(shown.len() < LONGEST && shown.starts_with("echo ż"), "{shown}");
    assert!(shown.contains(&format!("{} bytes in all, SHA-256 ", line.len())), "{shown}");
}

#[test]
fn json_has_a_secret_as_the_string_that_it_is() {
    assert_eq!(serde_json::to_string(&Secret::new("a\"b".into())).unwrap(), r#""a\"b""#);
}

#[test]
fn a_withheld_error_keeps_what_programs_act_on() {
    let mut error = ErrorFrame::new("c1", ErrorCode::Timeout, PLANTED.to_owned());
    error.details.insert("stdout".into(), PLANTED.into());
    withhold(&mut error);
    assert_eq!((error.code.to_string().as_str(), format!("{error:?}").contains(PLANTED)), ("TIMEOUT", false));
}
