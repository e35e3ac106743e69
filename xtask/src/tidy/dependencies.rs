//! Invariants 1 and 2: the program does not link attacks, and only model code knows the tensor framework.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;

use super::{Problem, Source};

/// Programs that go to users, and what they must not link.
const WITHOUT_ATTACKS: [&str; 2] = ["depurate", "depurate-guard"];
const ATTACKS: &str = "depurate-attack";
/// Crates that know no tensors.
const WITHOUT_TENSORS: [&str; 3] = ["depurate-report", "depurate-stats", "depurate-checkpoint"];
/// Starts of the names of tensor frameworks.
const FRAMEWORKS: [&str; 4] = ["burn", "candle", "tch", "ort"];
/// Crates in whose sources the framework may be named.
const MODEL_CODE: [&str; 7] = [
    "diffusion",
    "kernels",
    "defense",
    "attack",
    "bench",
    "testkit",
    "training",
];

/// Checks the graph of dependencies and the sources.
pub fn check(root: &Path, sources: &[Source]) -> Vec<Problem> {
    let mut problems = match graph(root) {
        Ok(graph) => check_graph(&graph),
        Err(what) => vec![Problem {
            file: "Cargo.toml".into(),
            line: 0,
            what,
        }],
    };
    problems.extend(
        sources
            .iter()
            .filter(|source| !may_name_framework(source))
            .flat_map(named),
    );
    problems
}

/// Every package with what it links: normal and build dependencies, not those of tests.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn check_graph(graph: &Graph) -> Vec<Problem> {
    let problem = |package: &str, path: Vec<String>| Problem {
        file: format!("crates/{package}/Cargo.toml"),
        line: 0,
        what: format!(
            "`{package}` must not link `{}`: {}",
            path.last().map_or("", String::as_str),
            path.join(" -> ")
        ),
    };
    let attacks = WITHOUT_ATTACKS
        .iter()
        .map(|package| (*package, path_to(graph, package, &|name| name == ATTACKS)));
    let framework = |name: &str| {
        FRAMEWORKS
            .iter()
            .any(|f| name == *f || name.starts_with(&format!("{f}-")))
    };
    let tensors = WITHOUT_TENSORS
        .iter()
        .map(|package| (*package, path_to(graph, package, &framework)));
    attacks
        .chain(tensors)
        .filter_map(|(package, path)| Some(problem(package, path?)))
        .collect()
}

/// A way from `from` to a package that is `wanted`, if there is one.
fn path_to(graph: &Graph, from: &str, wanted: &dyn Fn(&str) -> bool) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![vec![from.to_owned()]];
    while let Some(path) = open.pop() {
        let last = path.last()?;
        if path.len() > 1 && wanted(last) {
            return Some(path);
        }
        for next in graph.get(last).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(path.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}

fn graph(root: &Path) -> Result<Graph, String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    parse(&metadata).ok_or_else(|| "cargo metadata has another form than expected".into())
}

fn parse(metadata: &Value) -> Option<Graph> {
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array()? {
        names.insert(package["id"].as_str()?, package["name"].as_str()?);
    }
    let mut graph = Graph::new();
    for node in metadata["resolve"]["nodes"].as_array()? {
        let linked = graph
            .entry((*names.get(node["id"].as_str()?)?).to_owned())
            .or_default();
        for dependency in node["deps"].as_array()? {
            let kinds = dependency["dep_kinds"].as_array()?;
            if kinds
                .iter()
                .any(|kind| kind["kind"].as_str() != Some("dev"))
            {
                linked.insert((*names.get(dependency["pkg"].as_str()?)?).to_owned());
            }
        }
    }
    Some(graph)
}

fn may_name_framework(source: &Source) -> bool {
    let model_code = |part: &str| source.path.starts_with(&format!("crates/depurate-{part}/"));
    !source.is_rust()
        || !source.path.starts_with("crates/")
        || MODEL_CODE.iter().any(|part| model_code(part))
}

fn named(source: &Source) -> impl Iterator<Item = Problem> {
    let lines = source.text.lines().enumerate();
    let naming = lines.filter(|(_, line)| {
        ["burn::", "burn_", "candle_core"]
            .iter()
            .any(|name| line.contains(name))
    });
    naming.map(|(index, _)| {
        source.problem(
            index + 1,
            "names the tensor framework: take what `depurate-diffusion` re-exports",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tidy::source;

    fn linked(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph
                .entry((*from).into())
                .or_default()
                .insert((*to).into());
        }
        graph
    }

    #[test]
    fn a_program_that_links_attacks_through_another_crate_is_found() {
        let graph = linked(&[
            ("depurate", "a"),
            ("a", "depurate-attack"),
            ("depurate-bench", "depurate-attack"),
        ]);
        let problems = check_graph(&graph);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0]
                .what
                .contains("depurate -> a -> depurate-attack"),
            "{}",
            problems[0]
        );
    }

    #[test]
    fn a_report_that_links_a_framework_is_found_and_a_cycle_ends() {
        let graph = linked(&[
            ("depurate-report", "x"),
            ("x", "x"),
            ("x", "burn-core"),
            ("depurate-stats", "burnish"),
        ]);
        let problems = check_graph(&graph);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].file.contains("depurate-report"));
    }

    #[test]
    fn dependencies_of_tests_do_not_count() {
        let metadata = json!({
            "packages": [{"id": "1", "name": "depurate"}, {"id": "2", "name": "depurate-attack"}],
            "resolve": {"nodes": [{"id": "1", "deps": [{"pkg": "2", "dep_kinds": [{"kind": "dev"}]}]}, {"id": "2", "deps": []}]},
        });
        let graph = parse(&metadata).unwrap_or_default();
        assert_eq!(graph.len(), 2);
        assert_eq!(check_graph(&graph), []);
    }

    #[test]
    fn the_framework_is_named_in_model_code_only() {
        let text = "use burn::tensor::Tensor;\n";
        let found = |path| {
            !may_name_framework(&source(path, text)) && named(&source(path, text)).count() == 1
        };
        assert!(found("crates/depurate/src/scan.rs"));
        assert!(found("crates/depurate-report/src/lib.rs"));
        assert!(!found("crates/depurate-diffusion/src/lib.rs"));
    }
}
