#!/bin/sh
# Judge what the code host reads, without a network: schemas, then what zizmor knows of workflows.
# usage: lint-workflows.sh        check-jsonschema and zizmor are on PATH

set -eu
check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml \
    .github/ISSUE_TEMPLATE/idea.yml
check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
zizmor --offline --quiet --no-progress .github
