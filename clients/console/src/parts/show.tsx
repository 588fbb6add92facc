/** Small things that all pages show. */
import type { DescMessage, JsonValue, MessageShape } from "@bufbuild/protobuf";
import { toJson } from "@bufbuild/protobuf";
import { Button, Group, Paper, Stack, Text, Title } from "@mantine/core";
import { Fragment, type ReactNode } from "react";
import { AsCommand, type Call, Command } from "./command.tsx";

export type Tone = "good" | "bad" | "wait" | "off";

/** A state in a word, with a dot of its colour: never by the colour alone. */
export const State = ({ tone, children }: { tone: Tone; children: ReactNode }) => (
  <span className={`state ${tone}`}>{children}</span>
);

export const Mono = ({ children }: { children: ReactNode }) => <span className="mono">{children}</span>;

export const Json = ({ value }: { value: JsonValue | undefined }) => (
  // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reachable by keyboard
  <pre className="json" tabIndex={0}>
    {JSON.stringify(value ?? null, null, 2)}
  </pre>
);

/** A message as the protocol writes it. */
export const Raw = <Desc extends DescMessage>({ schema, message }: { schema: Desc; message: MessageShape<Desc> }) => (
  <Json value={toJson(schema, message)} />
);

export const Facts = ({ facts }: { facts: readonly (readonly [string, ReactNode])[] }) => (
  <dl className="facts">
    {facts
      .filter(([, value]) => value !== "" && value !== undefined && value !== false)
      .map(([name, value]) => (
        <Fragment key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </Fragment>
      ))}
  </dl>
);

/** What stands where nothing is yet: what would be here, and the command that makes the first. */
export const Empty = ({ title, children, command }: { title: string; children: ReactNode; command?: string }) => (
  <Paper withBorder p="lg">
    <Stack gap="sm">
      <Title order={2} size="h4">
        {title}
      </Title>
      <Text size="sm" c="dimmed">
        {children}
      </Text>
      {command && <Command text={command} />}
    </Stack>
  </Paper>
);

type HeadProps = {
  readonly title: string;
  readonly about?: string;
  readonly cli?: string;
  readonly call?: Call;
  readonly onRefresh?: () => void;
  readonly children?: ReactNode;
};

/** The head of a page: its name, filters, and what it shows as a command. */
export const Head = ({ title, about, cli, call, onRefresh, children }: HeadProps) => (
  <Stack gap="xs" mb="md">
    <Group justify="space-between" gap="xs">
      <Title order={1} size="h3">
        {title}
      </Title>
      <Group gap="xs">
        {onRefresh && (
          <Button variant="default" size="compact-sm" onClick={onRefresh}>
            Refresh
          </Button>
        )}
        {call && <AsCommand cli={cli} call={call} />}
      </Group>
    </Group>
    {about && (
      <Text size="sm" c="dimmed">
        {about}
      </Text>
    )}
    {children && <Group gap="sm">{children}</Group>}
  </Stack>
);

/** Bars of equal width, the last one the newest. */
export function Spark({ values, label, tone }: { values: readonly number[]; label: string; tone?: Tone }) {
  const most = Math.max(1, ...values);
  return (
    <svg
      className={`spark ${tone ?? ""}`}
      viewBox={`0 0 ${values.length * 4} 36`}
      preserveAspectRatio="none"
      role="img"
      aria-label={`${label}: ${values.join(", ")}`}
    >
      {values.map((value, index) => {
        const height = value === 0 ? 1 : Math.max(2, (value / most) * 36);
        return <rect key={index} x={index * 4} y={36 - height} width={3} height={height} />;
      })}
    </svg>
  );
}
