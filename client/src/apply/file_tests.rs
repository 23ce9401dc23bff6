use super::*;

fn load_with(text: &str, variables: &Variables) -> Result<StepList, String> {
    StepList::parse(text, Path::new("f.yaml"), variables).map_err(|problems| problems.to_string())
}

fn load(text: &str) -> Result<StepList, String> {
    load_with(text, &Variables::new())
}

fn wrong(text: &str) -> String {
    load(text).map(|_| ()).unwrap_err()
}

#[test]
fn a_list_is_steps_or_a_mapping_with_vars_and_json_is_as_good() {
    for text in [
        "- {id: a, type: exec, params: {argv: ['true']}}",
        "vars: {x: 1}\nsteps:\n- id: a\n  type: exec\n  params:\n    argv: ['true', '{{ x }}']\n",
        r#"{"steps": [{"id": "a", "type": "exec", "params": {"argv": ["true"]}}]}"#,
    ] {
        let list = load(text).unwrap();
        assert_eq!((list.steps()[0].id(), list.steps()[0].kind()), ("a", CommandType::Exec));
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_its_place_and_with_what_was_meant() {
    let mut missing = Vec::new();
    for (text, said) in [
        (
            "- {id: a, type: file_wrte}",
            "f.yaml:1:17: there is no command file_wrte; did you mean file_write?",
        ),
        ("- {id: a, type: nonsense}", "there is no command nonsense; there are exec, file_write"),
        ("- {id: a, type: exec, parms: {}}", "f.yaml:1:23: there is no field parms; did you mean params?"),
        (
            "- id: a\n  type: file_write\n  params: {path: /x, contnet: y}",
            "f.yaml:3:22: there is no field contnet; did you mean content?",
        ),
        (
            "- id: a\n  type: exec\n  params: {argv: [a], limits: {nise: 1}}",
            "f.yaml:3:32: there is no field nise; did you mean nice?",
        ),
        ("- {id: a, type: exec, params: {argv: true}}", "f.yaml:1:38: expected a list, found true or false"),
        (
            "- {id: a, type: exec, params: {argv: [a, 5]}}",
            "f.yaml:1:42: expected text, found a number; put it in quotes",
        ),
        (
            "- {id: a, type: file_write, params: {path: /x, mode: 644}}",
            "1:54: expected text, found a number; put it",
        ),
        (
            "- {id: a, type: file_write, params: {path: /x, mode: '9'}}",
            "1:54: mode \"9\" is not an octal number",
        ),
        (
            "- {id: a, type: file_write, params: {path: /x, backup: yes}}",
            "1:56: expected true or false, found text",
        ),
        (
            "- {id: a, type: sshd_harden, params: {port: 99999}}",
            "1:45: expected a whole number from 0 to 65535",
        ),
        (
            "- {id: a, type: exec, become: {user: x, method: sduo}, params: {argv: [a]}}",
            "expected sudo or doas or su; did you mean sudo?",
        ),
        ("- {id: a, type: file_write, params: {mode: '644'}}", "1:37: file_write: path is missing"),
        ("- {id: a, type: service_reload, params: {name: x}}", "service_reload: action is missing"),
        ("- {id: a, type: exec, params: {env: {A: b}}}", "exec: command or argv is missing"),
        (
            "- {id: a, type: exec, params: {command: cat, stdin_from: input}}",
            "a step has no input of its own",
        ),
        ("- {type: exec, params: {argv: [a]}}", "f.yaml:1:3: id is missing"),
        ("- {id: a}", "f.yaml:1:3: type is missing"),
        ("- {id: a b, type: exec, params: {argv: [a]}}", "an id is a letter or _"),
        ("- {id: a, type: exec, timeout: 0, params: {argv: [a]}}", "1:32: a timeout is at least 1 second"),
        ("- {id: a, type: exec, timeout: -1, params: {argv: [a]}}", "1:32: expected a whole number"),
        (
            "- {id: a, type: exec, params: {argv: [a]}}\n- {id: a, type: exec, params: {argv: [a]}}",
            "f.yaml:2:8: the id a is taken, by f.yaml:1:3",
        ),
        (
            "- {id: conf, type: exec, params: {argv: [a]}}\n- {id: b, type: exec, params: {argv: [a]}, when_changed: [cnof]}",
            "f.yaml:2:59: no step before this one has the id cnof; did you mean conf?",
        ),
        ("- {id: a, type: exec, params: {argv: [a]}, when_changed: [a]}", "a is this step itself"),
        ("- {id: a, type: exec, params: {argv: ['{{ x']}}", "f.yaml:1:39: syntax error"),
        ("- {id: a, type: exec, params: {argv: ['{{ x }}']}}", "f.yaml:1:3: step a: there is no variable x"),
        (
            "- {id: a, type: exec, params: {argv: ['{{ facts.hotsname }}']}}",
            "there is no fact hotsname; did you mean hostname?",
        ),
        (
            "- {id: a, type: exec, params: {argv: ['{{ results.b.stdout }}']}}",
            "results.b: no step before this one has the id b",
        ),
        (
            "- {id: a, type: exec, params: {argv: [a]}}\n- {id: b, type: exec, params: {argv: ['{{ results.a.stdot }}']}}",
            "a result of exec has no field stdot; did you mean stdout?",
        ),
        ("- {id: a, type: exec, only_if: '{{ x }}', params: {argv: [a]}}", "write it without {{ }}"),
        ("- {id: a, type: exec, only_if: 'x ==', params: {argv: [a]}}", "f.yaml:1:32: syntax error"),
        (
            "- {id: a, type: exec, only_if: {command: true}, params: {argv: [a]}}",
            "expected a list: a program and its arguments",
        ),
        (
            "- {id: a, type: exec, only_if: {comand: [a]}, params: {argv: [a]}}",
            "there is no field comand; did you mean command?",
        ),
        ("- {id: a, type: exec, timeout: '{{ 5 }}', params: {argv: [a]}}", "only params can be templates"),
        ("- {id: a, type: exec, changes: [x], params: {argv: [a]}}", "1:33: expected an absolute path"),
        (
            "- {id: a, type: exec, template: x, params: {argv: [a]}}",
            "only file_write takes its content from a file",
        ),
        (
            "- {id: a, type: file_write, template: x, params: {path: /x, content: y}}",
            "the content comes from this file",
        ),
        (
            "- {id: a, type: file_write, content_file: nosuch, params: {path: /x}}",
            "f.yaml:1:43: nosuch: No such file",
        ),
        ("- {include: nosuch.yaml}", "f.yaml:1:13: nosuch.yaml: No such file"),
        ("- {include: x.yaml, var: {}}", "there is no field var; did you mean vars?"),
        ("vars: {facts: 1}\nsteps: []", "f.yaml:1:8: facts means something else in templates"),
        ("vars: {a-b: 1}\nsteps: []", "f.yaml:1:8: \"a-b\" is no name of a variable"),
        ("vars: {a: '{{ b }}'}\nsteps: []", "f.yaml:1:11: variables are no templates"),
        ("steps: []", "there are no steps in it"),
        (
            "id: a\ntype: exec\nparams: {argv: [a]}",
            "f.yaml:1:1: this is a step: a list of them begins each with `- `",
        ),
        ("vars: {}", "f.yaml:1:1: steps are missing"),
        ("steps: x", "f.yaml:1:8: expected a list of steps, found text"),
        ("tasks: []", "there is no field tasks"),
        ("just text", "expected a list of steps, or a mapping"),
        ("- just text", "f.yaml:1:3: expected a mapping, found text"),
    ] {
        let all = wrong(text);
        if !all.contains(said) {
            missing.push(format!("{text}\n  gives {all}\n  and not {said}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn all_mistakes_are_told_at_once_and_each_only_once() {
    let all = wrong(
        "- {id: a, type: nonsense}\n- {id: b, type: exec, params: {argv: [1]}, when_changed: [a]}\n- {id: c, tpye: exec}",
    );
    let places: Vec<&str> = all.lines().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(places, ["f.yaml:1:17", "f.yaml:2:39", "f.yaml:3:11", "f.yaml:3:3"], "{all}");
}

#[test]
fn errors_are_as_many_as_are_read_and_cannot_drive_a_terminal() {
    let all = wrong(&"- {id: a, type: exec, params: {argv: [a]}}\n".repeat(100));
    assert_eq!((all.lines().count(), all.lines().last()), (51, Some("and 49 more")), "{all}");
    let all = wrong("- {id: a, type: \"\\e]0;owned\\a\", \"\\e[2J\": 1}");
    assert!(all.contains("owned") && !all.contains(|c: char| c.is_control() && c != '\n'), "{all:?}");
}

#[test]
fn no_error_shows_a_value() {
    for text in [
        "- {id: a, type: exec, params: {argv: [a], sudo_password: [hunter2]}}",
        "- {id: a, type: exec, params: {argv: hunter2}}",
        "- {id: a, type: exec, params: {argv: [a], capture_out: hunter2}}",
        "- {id: a, type: exec, become: [hunter2], params: {argv: [a]}}",
        "- {id: a, type: exec, become: {user: x, password: [hunter2]}, params: {argv: [a]}}",
    ] {
        assert!(!wrong(text).contains("hunter2"), "{}", wrong(text));
    }
    let variables = Variables::new().set("secret", "hunter2").unwrap();
    assert!(!format!("{variables:?}").contains("hunter2"));
}

#[test]
fn what_is_a_template_is_checked_for_its_name_and_not_for_its_type() {
    let text = "vars: {list: [a], on: true, mode: '0644'}\nsteps:\n\
                - {id: a, type: exec, params: {argv: '{{ list }}', capture_out: '{{ on }}'}}\n\
                - {id: b, type: file_write, params: {path: '/{{ mode }}', mode: '{{ mode }}'}}\n";
    load(text).unwrap();
    let all = wrong("vars: {x: 1}\nsteps:\n- {id: a, type: exec, params: {agv: '{{ x }}', argv: [a]}}\n");
    assert!(all.contains("there is no field agv; did you mean argv?"), "{all}");
}

#[test]
fn a_variable_that_nothing_knows_is_a_misspelt_one() {
    let text = "vars: {port: 80}\nsteps: [{id: a, type: exec, params: {argv: ['{{ port }}', '{{ name }}']}}]";
    let given =
        |name: &str| load_with(text, &Variables::new().set("name", "x").unwrap().set(name, "1").unwrap());
    given("port").unwrap();
    let all = given("prot").map(|_| ()).unwrap_err();
    assert_eq!(all, "the variable prot was given, and no step knows it; did you mean port?");
    assert!(Variables::new().set("results", 1).is_err() && Variables::new().set("a b", 1).is_err());
}

#[test]
fn included_files_stand_where_they_are_included_and_inner_variables_count_more() {
    let directory = tempfile::TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    write(
        "main.yaml",
        "vars: {a: 1, b: 1, c: 1}\nsteps:\n- {include: sub/inner.yaml, vars: {c: 3}}\n\
         - {id: last, type: exec, params: {argv: ['{{ a }}']}, when_changed: [first]}\n",
    );
    write(
        "sub/inner.yaml",
        "vars: {b: 2, c: 2}\nsteps:\n- {id: first, type: file_write, template: t, params: {path: /x}}\n",
    );
    write("sub/t", "{{ a }}{{ b }}{{ c }}");
    let variables = Variables::new().set("a", "given").unwrap();
    let list = StepList::load(&directory.path().join("main.yaml"), &variables).unwrap();
    assert_eq!(list.steps().iter().map(Step::id).collect::<Vec<_>>(), ["first", "last"]);
    let values: Vec<(String, String)> =
        list.steps()[0].scope.values().map(|(name, value)| (name.clone(), value.to_string())).collect();
    assert_eq!(values, [("a", "given"), ("b", "2"), ("c", "3")].map(|(a, b)| (a.to_owned(), b.to_owned())));

    // Each only once, whichever way it is named: two of them would be two to the power of the depth.
    write("main.yaml", "- {include: sub/inner.yaml}\n- {include: sub/inner.yaml}\n");
    write("sub/inner.yaml", "- {include: ../sub/../main.yaml}\n- {include: ../main.yaml}\n");
    let all = StepList::load(&directory.path().join("main.yaml"), &Variables::new()).map(|_| ()).unwrap_err();
    assert!(all.0.len() == 4 && all.0[0].message.contains("is part of what it would include"), "{all}");
    for depth in 0..20 {
        write(&format!("{depth}.yaml"), &format!("- {{include: {}.yaml}}", depth + 1));
    }
    let all = StepList::load(&directory.path().join("0.yaml"), &Variables::new()).map(|_| ()).unwrap_err();
    assert!(all.to_string().contains("include each other too deeply"), "{all}");
    write("main.yaml", "- {include: sub/inner.yaml}\n- {include: sub/inner.yaml}\n");
    write("sub/inner.yaml", "- {id: first, type: exec, params: {argv: [a]}}");
    let all = StepList::load(&directory.path().join("main.yaml"), &Variables::new()).map(|_| ()).unwrap_err();
    assert!(all.to_string().contains("inner.yaml:1:8: the id first is taken"), "{all}");
}
