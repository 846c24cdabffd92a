//! Checks that each top-level module of lb-userspace uses exactly the other modules that the table
//! in docs/architecture.md, "Map of the house", allows.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use syn::{
    Attribute, Item, ItemMod, ItemUse, Path as SynPath, UseTree,
    visit::{self, Visit},
};

use crate::{exec, tree};

const DOCUMENT: &str = "docs/architecture.md";
pub(super) const SOURCES: &str = "lb-userspace/src";
const HEADING: &str = "## Map of the house";
/// The crate roots, which may use every module.
const ROOTS: [&str; 2] = ["lib", "main"];

/// Fails and lists every use that the table does not allow, and every allowed use that does not
/// occur.
pub fn check() -> Result<()> {
    let path = exec::root().join(DOCUMENT);
    let document = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let allowed = table(&document)?;
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (module, file) in sources()? {
        let Some(may_use) = allowed.get(&module) else {
            bail!("{DOCUMENT}, {HEADING:?} has no row for the module `{module}` ({})", file.display());
        };
        let path = exec::root().join(&file);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let uses = uses(&text).with_context(|| format!("can't parse {}", file.display()))?;
        for other in uses.into_iter().filter(|other| *other != module && allowed.contains_key(other)) {
            if !may_use.contains(&other) {
                wrong.push(format!("{}: `{module}` may not use `{other}`", file.display()));
            }
            used.entry(module.clone()).or_default().insert(other);
        }
    }
    for (module, may_use) in &allowed {
        let uses = used.remove(module).unwrap_or_default();
        let idle: Vec<&str> = may_use.difference(&uses).map(String::as_str).collect();
        if !idle.is_empty() {
            wrong.push(format!("{DOCUMENT}: `{module}` does not use {}: remove that from its row", idle.join(", ")));
        }
    }
    ensure!(
        wrong.is_empty(),
        "the modules do not use each other as {DOCUMENT}, {HEADING:?}, says:\n  {}",
        wrong.join("\n  ")
    );
    Ok(())
}

/// Parses the rows `| module | what | uses |`, with the modules in backticks.
fn table(document: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let (_, section) = document.split_once(HEADING).with_context(|| format!("{DOCUMENT} has no {HEADING:?}"))?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let mut rows = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [module, _, uses] = cells[..] else { bail!("{DOCUMENT}: a row does not have three cells: {line}") };
        let names =
            |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        for module in names(module) {
            ensure!(rows.insert(module.clone(), names(uses)).is_none(), "{DOCUMENT}: `{module}` has two rows");
        }
    }
    ensure!(!rows.is_empty(), "{DOCUMENT}: {HEADING:?} has no table");
    Ok(rows)
}

/// Every source file of lb-userspace except tests, relative to the root of the repository, with its
/// top-level module.
pub(super) fn sources() -> Result<Vec<(String, PathBuf)>> {
    let mut sources = Vec::new();
    for file in tree::files()? {
        let Ok(within) = file.strip_prefix(SOURCES) else { continue };
        let is_test = within.with_extension("").iter().any(|name| name == "tests");
        let is_source = within.extension().is_some_and(|extension| extension == "rs");
        let top = within.iter().next().map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str);
        if let Some(top) = top.filter(|top| is_source && !is_test && !ROOTS.contains(top)) {
            sources.push((top.to_owned(), file));
        }
    }
    Ok(sources)
}

/// The top-level modules that a file's code names after `crate::`, except in its tests.
fn uses(text: &str) -> Result<BTreeSet<String>> {
    let mut found = Found::default();
    found.visit_file(&syn::parse_file(text)?);
    Ok(found.0)
}

#[derive(Default)]
struct Found(BTreeSet<String>);

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if let UseTree::Path(path) = &item.tree
            && path.ident == "crate"
        {
            self.note(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast SynPath) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|segment| segment.ident == "crate")
            && let Some(top) = segments.next()
        {
            self.0.insert(top.ident.to_string());
        }
        visit::visit_path(self, path);
    }
}

impl Found {
    fn note(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => drop(self.0.insert(path.ident.to_string())),
            UseTree::Name(name) => drop(self.0.insert(name.ident.to_string())),
            UseTree::Rename(rename) => drop(self.0.insert(rename.ident.to_string())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note(tree)),
            UseTree::Glob(_) => {}
        }
    }
}

/// Whether an item is compiled for tests only.
pub(super) fn is_for_tests(item: &Item) -> bool {
    let attributes: &[Attribute] = match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(ItemMod { attrs, .. }) | Item::Use(ItemUse { attrs, .. }) => attrs,
        _ => &[],
    };
    attributes.iter().any(is_test)
}

fn is_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<SynPath>().is_ok_and(|condition| condition.is_ident("test"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_of_another_module_is_found_but_those_of_tests() {
        let text = "
            use std::fmt;
            use crate::{clock::now, model::{self, Service}, state};
            use super::other;
            fn f() { let _: crate::view::Status = crate::plan::make(); }
            #[cfg(test)]
            mod tests { use crate::config::parse; }
        ";
        let expected = ["clock", "model", "plan", "state", "view"].map(str::to_owned);
        assert_eq!(uses(text).unwrap(), BTreeSet::from(expected));
    }

    #[test]
    fn table_names_each_module_once_with_what_it_may_use() {
        let document = "# A\n## Map of the house\n\n| module | what | uses |\n| --- | --- | --- |\n| `a` | this | \
            `b`, `c` |\n| `b` | that | |\n\n## Next\n| `d` | | |\n";
        let rows = table(document).unwrap();
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(rows["a"], BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert!(table("## Map of the house\n| `a` | | |\n| `a` | | |\n").is_err());
        assert!(table("nothing").is_err());
    }
}
